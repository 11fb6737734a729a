//! How long an order waits on a delay queue.

use std::time::Duration;

use crate::broker::Delay;
use crate::verification::Wait;

/// Who has waited longer than this can wait longer.
const LONG_WAIT: Duration = Duration::from_mins(1);

/// How long an order waits for `wait`, when it is `age` old.
pub(super) fn delay(wait: Wait, age: Duration) -> Delay {
    let (short, long) = match wait {
        Wait::ForRoom => (Delay::OneSecond, Delay::FiveSeconds),
        Wait::Pause(pause) => {
            let ends = |delay: &Delay| pause.as_millis() <= u128::from(delay.ms());
            let delay = Delay::ALL.into_iter().find(ends).unwrap_or(Delay::ThirtySeconds);
            (delay, delay)
        }
        Wait::Outage => (Delay::FiveSeconds, Delay::ThirtySeconds),
    };
    if age < LONG_WAIT { short } else { long }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_waited_out_and_an_outage_more_patiently_with_time() {
        let second = Duration::from_secs(1);
        assert_eq!(delay(Wait::Pause(second), second), Delay::OneSecond);
        assert_eq!(delay(Wait::Pause(2 * second), second), Delay::FiveSeconds);
        assert_eq!(delay(Wait::Pause(90 * second), second), Delay::ThirtySeconds);
        assert_eq!(delay(Wait::Outage, second), Delay::FiveSeconds);
        assert_eq!(delay(Wait::Outage, 90 * second), Delay::ThirtySeconds);
        assert_eq!(delay(Wait::ForRoom, second), Delay::OneSecond);
        assert_eq!(delay(Wait::ForRoom, 90 * second), Delay::FiveSeconds);
    }
}
