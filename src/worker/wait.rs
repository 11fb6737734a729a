//! How long an order waits on a delay queue.

use std::time::Duration;

use crate::broker::Delay;

/// Who has waited longer than this can wait longer.
const LONG_WAIT: Duration = Duration::from_mins(1);

/// What an order on a delay queue waits for.
#[derive(Clone, Copy)]
pub(super) enum Wait {
    /// Others of its sale are being checked.
    ForRoom,
    /// The end of a pause.
    Pause(Duration),
    /// The user service is away.
    Outage,
}

impl Wait {
    /// How long an order waits that is `age` old.
    pub(super) fn delay(self, age: Duration) -> Delay {
        let (short, long) = match self {
            Self::ForRoom => (Delay::OneSecond, Delay::FiveSeconds),
            Self::Pause(pause) => {
                let ends = |delay: &Delay| pause.as_millis() <= u128::from(delay.ms());
                let delay = Delay::ALL.into_iter().find(ends).unwrap_or(Delay::ThirtySeconds);
                (delay, delay)
            }
            Self::Outage => (Delay::FiveSeconds, Delay::ThirtySeconds),
        };
        if age < LONG_WAIT { short } else { long }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_waited_out_and_an_outage_more_patiently_with_time() {
        let second = Duration::from_secs(1);
        assert_eq!(Wait::Pause(second).delay(second), Delay::OneSecond);
        assert_eq!(Wait::Pause(2 * second).delay(second), Delay::FiveSeconds);
        assert_eq!(Wait::Pause(90 * second).delay(second), Delay::ThirtySeconds);
        assert_eq!(Wait::Outage.delay(second), Delay::FiveSeconds);
        assert_eq!(Wait::Outage.delay(90 * second), Delay::ThirtySeconds);
        assert_eq!(Wait::ForRoom.delay(second), Delay::OneSecond);
        assert_eq!(Wait::ForRoom.delay(90 * second), Delay::FiveSeconds);
    }
}
