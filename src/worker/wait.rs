//! How long an order waits on a delay queue.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::batch::Entry;
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
        Wait::Outage => return patient(age),
    };
    if age < LONG_WAIT { short } else { long }
}

/// How long an order that is `age` old waits for something of which it is not known when it comes.
fn patient(age: Duration) -> Delay {
    if age < LONG_WAIT { Delay::FiveSeconds } else { Delay::ThirtySeconds }
}

/// How long an order that is `age` old waits while its sale is held. Its age counts from the end of that: what is
/// left of the delay then takes at most half of it, if any delay is so short.
pub(super) fn held(age: Duration, max_age: Duration) -> Delay {
    let fits = |delay: &Delay| u128::from(delay.ms()) * 2 <= max_age.as_millis();
    let longest = Delay::ALL.into_iter().rfind(fits).unwrap_or(Delay::OneSecond);
    patient(age).min(longest)
}

/// How long ago an order was submitted, by the clock of this worker: it only chooses a delay.
pub(super) fn age(entry: &Entry, now: DateTime<Utc>) -> Duration {
    let submitted_at = entry.candidate.submitted_at.unwrap_or(now);
    now.signed_duration_since(submitted_at).to_std().unwrap_or_default()
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

    #[test]
    fn a_held_order_is_back_before_half_of_its_time_is_over() {
        let second = Duration::from_secs(1);
        assert_eq!(held(second, 900 * second), Delay::FiveSeconds);
        assert_eq!(held(90 * second, 900 * second), Delay::ThirtySeconds);
        assert_eq!(held(90 * second, 59 * second), Delay::FiveSeconds);
        assert_eq!(held(second, 9 * second), Delay::OneSecond);
        assert_eq!(held(second, second), Delay::OneSecond);
    }
}
