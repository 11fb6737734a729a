//! How much a consumer lets the broker hand out. RabbitMQ bounds it in messages only, and sends as many
//! at once whatever their size: so a window begins narrow, is made wider while messages are small, and
//! narrow again when they are large.

use std::collections::BTreeMap;

/// How much more than aimed at may be in hand when small messages are followed by the largest.
const OVERSHOOT: u64 = 8;

/// The prefetch window of one session.
#[derive(Debug)]
pub(super) struct Window {
    /// The widest it may be, in messages.
    widest: u16,
    /// The bytes in hand that are aimed at.
    most_bytes: u64,
    /// As it is now, in messages.
    messages: u16,
    /// Messages to be settled one by one before it is made wider, because one of them may break the
    /// session.
    careful: usize,
    /// Delivery tags handed over and not settled, with their bytes.
    in_hand: BTreeMap<u64, usize>,
    bytes: u64,
}

/// What is to be done about consuming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Take no more for now.
    Pause,
    /// Consume again, with the window as it is now.
    Resume,
    /// Consume with another window.
    Widen,
}

impl Window {
    /// A window of up to `widest` messages of up to `largest` bytes each, that aims at no more than
    /// `most_bytes` in hand and never has more than [`OVERSHOOT`] times that. The first `careful` messages
    /// are taken one by one.
    pub(super) fn new(widest: u16, most_bytes: u64, largest: usize, careful: usize) -> Self {
        let fit = |bytes: u64| u16::try_from(bytes / (largest as u64).max(1)).unwrap_or(u16::MAX);
        let widest = widest.min(fit(OVERSHOOT.saturating_mul(most_bytes))).max(1);
        let fitting = widest.min(fit(most_bytes)).max(1);
        let messages = if careful > 0 { 1 } else { fitting };
        Self { widest, most_bytes, messages, careful, in_hand: BTreeMap::new(), bytes: 0 }
    }

    pub(super) fn messages(&self) -> u16 {
        self.messages
    }

    pub(super) fn insert(&mut self, tag: u64, bytes: usize) {
        self.in_hand.insert(tag, bytes);
        self.bytes += bytes as u64;
    }

    pub(super) fn remove(&mut self, tag: u64) {
        if let Some(bytes) = self.in_hand.remove(&tag) {
            self.bytes -= bytes as u64;
            self.careful = self.careful.saturating_sub(1);
        }
    }

    /// Messages to be taken one by one yet.
    pub(super) fn careful(&self) -> usize {
        self.careful
    }

    /// The delivery tag that was handed over first.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.in_hand.keys().next().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_hand.is_empty()
    }

    /// What is to be done now, if anything.
    pub(super) fn turn(&mut self, consuming: bool) -> Option<Turn> {
        let (quarter, half) = (self.most_bytes / 4, self.most_bytes / 2);
        if consuming && self.bytes > self.most_bytes {
            // As many again would fill half.
            let fit = (self.in_hand.len() / 2).clamp(1, usize::from(self.widest));
            self.messages = u16::try_from(fit).unwrap_or(self.widest);
            Some(Turn::Pause)
        } else if !consuming && self.bytes <= half {
            Some(Turn::Resume)
        } else if consuming
            && self.careful == 0
            && self.messages < self.widest
            && self.bytes < quarter
            && self.in_hand.len() * 2 >= usize::from(self.messages)
        {
            self.messages = self.messages.saturating_mul(2).min(self.widest);
            Some(Turn::Widen)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_messages_narrow_the_window_and_small_ones_widen_it_again() {
        let mut window = Window::new(1000, 1000, 1, 0);
        for tag in 0..10 {
            window.insert(tag, 100);
            assert_eq!(window.turn(true), None);
        }
        window.insert(10, 100);
        assert_eq!((window.turn(true), window.messages()), (Some(Turn::Pause), 5));
        for tag in 0..6 {
            assert_eq!(window.turn(false), None);
            window.remove(tag);
        }
        assert_eq!((window.turn(false), window.messages()), (Some(Turn::Resume), 5));
        (6..11).for_each(|tag| window.remove(tag));
        assert_eq!(window.turn(true), None, "nobody is short of room");
        let mut widened = Vec::new();
        for tag in 11..1011 {
            window.insert(tag, 0);
            if window.turn(true) == Some(Turn::Widen) {
                widened.push(window.messages());
            }
        }
        assert_eq!(widened, [10, 20, 40, 80, 160, 320, 640, 1000]);
    }

    #[test]
    fn a_window_begins_with_what_fits_and_never_gets_wider_than_can_be_borne() {
        let mut window = Window::new(1000, 1000, 100, 0);
        assert_eq!(window.messages(), 10);
        for tag in 0..1000 {
            window.insert(tag, 0);
            window.turn(true);
        }
        assert_eq!(window.messages(), 80);
        assert_eq!(Window::new(5, 1000, 100, 0).messages(), 5);
        assert_eq!(Window::new(5, 1000, 5000, 0).messages(), 1);
    }

    #[test]
    fn while_one_of_them_may_break_the_session_messages_are_taken_one_by_one() {
        let mut window = Window::new(1000, 1000, 1, 2);
        for tag in 0..2 {
            assert_eq!(window.messages(), 1);
            window.insert(tag, 1);
            assert_eq!(window.turn(true), None);
            window.remove(tag);
        }
        window.insert(2, 1);
        assert_eq!((window.turn(true), window.messages()), (Some(Turn::Widen), 2));
    }

    #[test]
    fn one_message_is_always_taken() {
        let mut window = Window::new(10, 100, 100, 0);
        window.insert(1, 5000);
        assert_eq!((window.turn(true), window.messages()), (Some(Turn::Pause), 1));
        window.remove(1);
        assert_eq!(window.turn(false), Some(Turn::Resume));
    }
}
