//! A slow start after an outage, as TCP's (RFC 5681, section 3.1): what has just come back is not met by everything
//! that has waited for it.

/// Calls that may be under way at once: 2 after an outage, and one more with each answer, so that their number doubles
/// in the time that a call takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlowStart(usize);

/// Calls at once when the service has just come back.
const FIRST: usize = 2;

impl SlowStart {
    /// No limit: there was no outage.
    pub(super) fn none() -> Self {
        Self(usize::MAX)
    }

    /// The service has come back.
    pub(super) fn begin(&mut self) {
        self.0 = FIRST;
    }

    /// It has answered.
    pub(super) fn answered(&mut self) {
        self.0 = self.0.saturating_add(1);
    }

    /// How many calls may be under way, of `most` without an outage.
    pub(super) fn of(self, most: usize) -> usize {
        self.0.min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_at_once_double_with_each_round_of_answers_up_to_the_most() {
        let mut start = SlowStart::none();
        assert_eq!(start.of(50), 50);
        start.begin();
        let rounds = [2, 4, 8, 16, 32, 50].map(|expected| {
            let now = start.of(50);
            (0..now).for_each(|_| start.answered());
            (now, expected)
        });
        assert!(rounds.iter().all(|(now, expected)| now == expected), "{rounds:?}");
    }
}
