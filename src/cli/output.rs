//! Printing results, so that a closed pipe is no failure.

use std::fmt::Write as _;
use std::io::{self, Write};

use comfy_table::{Table, presets};
use serde::Serialize;

/// Prints `value` as one JSON document.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = escaped(&serde_json::to_string_pretty(value)?);
    text.push('\n');
    self::text(&text)
}

/// Prints rows under their headings.
pub fn table<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headings);
    for row in rows {
        table.add_row(row.map(|cell| escaped(&cell)));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    text(&format!("{}\n", lines.join("\n")))
}

/// `text` with an escape, as JSON has it, in place of every character that a terminal acts on instead of
/// showing it: what came from outside may hold such.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if (c.is_control() && c != '\n') || is_bidirectional(c) {
            let _ = write!(safe, "\\u{:04x}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Whether `c` changes the direction of what follows (Unicode Standard Annex 9, section 2).
fn is_bidirectional(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Prints `text` as it is.
pub fn text(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_acts_on_is_printed() {
        assert_eq!(escaped("Zoë 日本\n"), "Zoë 日本\n");
        assert_eq!(escaped("\u{1b}[31m\u{9b}\r\u{7f}"), r"\u001b[31m\u009b\u000d\u007f");
        assert_eq!(escaped("a\u{202e}b\u{2066}"), r"a\u202eb\u2066");
        let json = escaped(&serde_json::to_string("\u{202e}\u{9b}\u{1b}").unwrap());
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), "\u{202e}\u{9b}\u{1b}");
    }
}
