//! When to try again.

use std::time::Duration;

use crate::retry;

/// How long to wait after the first attempt, the second, and so on; after the last of them for as long as after it.
const DELAYS_S: [u64; 7] = [5, 30, 120, 300, 900, 1800, 3600];

/// How long an endpoint that asks for so long is left alone: an hour at most.
pub(super) fn bounded(asked: Duration) -> Duration {
    asked.min(Duration::from_secs(DELAYS_S[DELAYS_S.len() - 1]))
}

/// How long to wait after so many attempts, if the endpoint has not asked for more. At most an hour and a bit.
pub(super) fn delay(attempts: u32, retry_after: Option<Duration>) -> Duration {
    let number = (attempts.max(1) as usize - 1).min(DELAYS_S.len() - 1);
    let asked = bounded(retry_after.unwrap_or_default());
    retry::jittered(Duration::from_secs(DELAYS_S[number]).max(asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_an_hour_and_heed_the_endpoint() {
        let about = |delay: Duration, seconds: u64| {
            let expected = Duration::from_secs(seconds);
            (expected.mul_f64(0.9)..=expected.mul_f64(1.1)).contains(&delay)
        };
        for (attempts, seconds) in [(0, 5), (1, 5), (2, 30), (7, 3600), (1000, 3600)] {
            assert!(about(delay(attempts, None), seconds), "{attempts}");
        }
        assert!(about(delay(1, Some(Duration::from_mins(1))), 60));
        assert!(about(delay(1, Some(Duration::from_hours(24))), 3600));
    }
}
