//! Where replayed lines come from: CSV or JSON lines, plain or compressed.

mod bounded;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, bail};
use clap::Args;
use flate2::read::MultiGzDecoder;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use self::bounded::{Allowance, Bounded};
use crate::domain::order::SaleId;

/// Routing key of a line whose sale can't be read.
const NO_SALE: &str = "unknown";

/// Which columns of a CSV file make an intent.
#[derive(Debug, Args)]
pub(super) struct Mapping {
    /// Columns of the order id, joined by "-" if several
    #[arg(long, value_name = "COLUMN[,COLUMN]", value_delimiter = ',', default_value = "order_id")]
    order_id: Vec<String>,
    /// Columns of the sale id
    #[arg(long, value_name = "COLUMN[,COLUMN]", value_delimiter = ',', default_value = "sale_id")]
    sale_id: Vec<String>,
    /// Columns of the user id
    #[arg(long, value_name = "COLUMN[,COLUMN]", value_delimiter = ',', default_value = "user_id")]
    user_id: Vec<String>,
    /// Column of the quantity
    #[arg(long, value_name = "COLUMN", default_value = "quantity")]
    quantity: String,
}

/// One line, ready to be sent.
pub(super) struct Line {
    pub routing_key: String,
    pub body: Vec<u8>,
    /// The body is JSON, so that it can stand in an array.
    pub is_json: bool,
}

/// A file of lines.
pub(super) struct Source {
    format: Format,
    /// Bytes that the next line may take.
    allowance: Allowance,
}

type Reader = BufReader<Bounded<Box<dyn Read + Send>>>;

enum Format {
    Csv { reader: Box<csv::Reader<Reader>>, columns: Columns },
    JsonLines(Reader),
}

/// Where in a record the fields stand.
pub(super) struct Columns {
    order_id: Vec<usize>,
    sale_id: Vec<usize>,
    user_id: Vec<usize>,
    quantity: usize,
}

impl Source {
    /// The file at `path`, or standard input if that is `-`.
    pub(super) fn open(path: &Path, mapping: &Mapping, bar: &ProgressBar) -> anyhow::Result<Self> {
        let is_stdin = path == Path::new("-");
        let bytes: Box<dyn Read + Send> = if is_stdin {
            Box::new(io::stdin())
        } else {
            let file = File::open(path)?;
            bar.set_length(file.metadata()?.len());
            Box::new(bar.wrap_read(file))
        };
        let name = path.to_string_lossy().to_lowercase();
        let uncompressed = name.strip_suffix(".gz");
        let mut bytes = BufReader::new(bytes);
        let is_compressed =
            if is_stdin { bytes.fill_buf()?.starts_with(&GZIP) } else { uncompressed.is_some() };
        let text: Box<dyn Read + Send> =
            if is_compressed { Box::new(MultiGzDecoder::new(bytes)) } else { Box::new(bytes) };
        let allowance = Allowance::default();
        let mut reader = BufReader::new(Bounded::new(text, allowance.clone()));
        let is_csv = match uncompressed.unwrap_or(&name).rsplit('.').next() {
            _ if is_stdin => None,
            Some("csv") => Some(true),
            Some("jsonl" | "ndjson") => Some(false),
            _ => bail!(
                "is neither CSV nor JSON lines by its name; accepted: .csv .jsonl .ndjson, each also with .gz"
            ),
        };
        let start = beginning(&mut reader)?;
        if !is_csv.unwrap_or(start != b'{') {
            return Ok(Self { format: Format::JsonLines(reader), allowance });
        }
        let reader = csv::ReaderBuilder::new().flexible(true).from_reader(reader);
        let mut reader = Box::new(reader);
        let columns = mapping.columns(reader.headers()?)?;
        Ok(Self { format: Format::Csv { reader, columns }, allowance })
    }

    /// Up to `count` lines, or `None` at the end.
    pub(super) fn take(&mut self, count: usize) -> anyhow::Result<Option<Vec<Line>>> {
        let mut lines = Vec::new();
        while lines.len() < count {
            self.allowance.renew();
            let line = match &mut self.format {
                Format::Csv { reader, columns } => csv_line(reader, columns)?,
                Format::JsonLines(reader) => json_line(reader)?,
            };
            match line {
                Some(line) => lines.push(line),
                None => break,
            }
        }
        Ok((!lines.is_empty()).then_some(lines))
    }
}

/// What a file in gzip begins with (RFC 1952 section 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// The byte order mark of UTF-8, which is no part of the text.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The first byte of the text, which is not taken. Fails if it is not UTF-8, as far as that can be seen.
fn beginning(reader: &mut Reader) -> anyhow::Result<u8> {
    let start = reader.fill_buf()?;
    // UTF-16, with its byte order mark or by the half of an ASCII character that is 0.
    if matches!(start, [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, ..] | [_, 0, ..]) {
        bail!("is not UTF-8, but seems to be UTF-16; accepted: UTF-8");
    }
    if start.starts_with(BYTE_ORDER_MARK) {
        reader.consume(BYTE_ORDER_MARK.len());
    }
    reader.fill_buf()?.first().copied().context("is empty")
}

impl Mapping {
    fn columns(&self, headings: &csv::StringRecord) -> anyhow::Result<Columns> {
        let find = |name: &String| {
            headings.iter().position(|heading| heading == name).with_context(|| {
                let known = headings.iter().collect::<Vec<_>>().join(", ");
                format!("has no column {name:?}; it has: {known}. Name others with --order-id, --sale-id, --user-id, --quantity")
            })
        };
        let all = |names: &[String]| names.iter().map(find).collect::<anyhow::Result<Vec<_>>>();
        Ok(Columns {
            order_id: all(&self.order_id)?,
            sale_id: all(&self.sale_id)?,
            user_id: all(&self.user_id)?,
            quantity: find(&self.quantity)?,
        })
    }
}

fn csv_line(reader: &mut csv::Reader<Reader>, columns: &Columns) -> anyhow::Result<Option<Line>> {
    let mut record = csv::ByteRecord::new();
    if !reader.read_byte_record(&mut record)? {
        return Ok(None);
    }
    let field = |column: usize| {
        String::from_utf8_lossy(record.get(column).unwrap_or_default()).into_owned()
    };
    let joined = |columns: &[usize]| {
        columns.iter().map(|&column| field(column)).collect::<Vec<_>>().join("-")
    };
    let sale_id = joined(&columns.sale_id);
    let quantity = field(columns.quantity);
    let intent = json!({
        "order_id": joined(&columns.order_id),
        "sale_id": sale_id,
        "user_id": joined(&columns.user_id),
        // What is no whole number goes as the text it is, for the worker to refuse.
        "quantity": quantity.trim().parse::<i64>().map_or(Value::String(quantity), Value::from),
    });
    Ok(Some(Line {
        routing_key: routing_key(Some(sale_id)),
        body: serde_json::to_vec(&intent)?,
        is_json: true,
    }))
}

fn json_line(reader: &mut Reader) -> anyhow::Result<Option<Line>> {
    let mut body = Vec::new();
    while reader.read_until(b'\n', &mut body)? > 0 {
        let text = body.trim_ascii();
        if !text.is_empty() {
            let parsed = serde_json::from_slice::<Value>(text);
            let sale = parsed
                .as_ref()
                .ok()
                .and_then(|value| value.get("sale_id")?.as_str().map(str::to_owned));
            let is_json = parsed.is_ok_and(|value| !value.is_array());
            return Ok(Some(Line { routing_key: routing_key(sale), body: text.to_vec(), is_json }));
        }
        body.clear();
    }
    Ok(None)
}

fn routing_key(sale: Option<String>) -> String {
    sale.filter(|sale| SaleId::parse(sale.as_str()).is_ok()).unwrap_or_else(|| NO_SALE.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(order_id: &[&str]) -> Mapping {
        Mapping {
            order_id: order_id.iter().map(|&name| name.to_owned()).collect(),
            sale_id: vec!["StockCode".into()],
            user_id: vec!["CustomerID".into()],
            quantity: "Quantity".into(),
        }
    }

    fn lines(
        name: &str,
        contents: &str,
        mapping: &Mapping,
    ) -> anyhow::Result<Vec<(String, String)>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join(name);
        std::fs::write(&path, contents)?;
        let mut source = Source::open(&path, mapping, &ProgressBar::hidden())?;
        let lines = source.take(100)?.unwrap_or_default();
        Ok(lines
            .into_iter()
            .map(|line| (line.routing_key, String::from_utf8(line.body).unwrap()))
            .collect())
    }

    #[test]
    fn columns_are_joined_and_bad_values_go_as_they_are() {
        let text = "InvoiceNo,StockCode,Quantity,CustomerID\n1,A,6,u.0\n2,b c,x,\n3\n";
        let lines = lines("a.csv", text, &mapping(&["InvoiceNo", "StockCode"])).unwrap();
        assert_eq!(lines[0].0, "A");
        assert_eq!(lines[0].1, r#"{"order_id":"1-A","quantity":6,"sale_id":"A","user_id":"u.0"}"#);
        assert_eq!(lines[1].0, NO_SALE);
        assert_eq!(
            lines[1].1,
            r#"{"order_id":"2-b c","quantity":"x","sale_id":"b c","user_id":""}"#
        );
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn what_is_no_text_in_utf_8_is_named() {
        let error = |name: &str, bytes: &str| {
            lines(name, bytes, &mapping(&["o"])).map(drop).unwrap_err().to_string()
        };
        assert_eq!(error("a.jsonl", ""), "is empty");
        assert_eq!(error("a.csv", "\u{feff}"), "is empty");
        assert!(error("a.csv", "o\0,\0").contains("UTF-16"));
        assert!(error("a.jsonl", "\0{").contains("UTF-16"));
        let marked = lines("a.jsonl", "\u{feff}{\"sale_id\":\"s\"}", &mapping(&[])).unwrap();
        assert_eq!(marked, [("s".into(), "{\"sale_id\":\"s\"}".into())]);
    }

    #[test]
    fn a_line_or_a_quoted_field_without_end_is_refused() {
        let long = "x".repeat(17 << 20);
        let text = format!("o,StockCode,Quantity,CustomerID\n1,s,1,u\n2,s,1,\"{long}");
        for (name, text) in [("a.csv", text), ("a.jsonl", long)] {
            let error = lines(name, &text, &mapping(&["o"])).unwrap_err().to_string();
            assert!(error.contains("longer than 16777216 bytes"), "{error}");
        }
    }

    #[test]
    fn an_unknown_column_is_named_with_those_there_are() {
        let error =
            lines("a.csv", "StockCode,Quantity,CustomerID\n", &mapping(&["Invoice"])).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("no column \"Invoice\"; it has: StockCode, Quantity, CustomerID")
        );
    }

    #[test]
    fn json_lines_go_as_they_are_and_empty_ones_not_at_all() {
        let lines = lines("a.jsonl", "{\"sale_id\":\"s\"}\n\nnot json\n", &mapping(&[])).unwrap();
        assert_eq!(
            lines,
            [("s".into(), "{\"sale_id\":\"s\"}".into()), (NO_SALE.into(), "not json".into())]
        );
    }
}

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::inputs;

    fn read(name: &str, bytes: &[u8]) -> anyhow::Result<Vec<Line>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join(name);
        std::fs::write(&path, bytes)?;
        let one = |name: &str| vec![name.to_owned()];
        let mapping = Mapping {
            order_id: one("order_id"),
            sale_id: one("sale_id"),
            user_id: one("user_id"),
            quantity: "quantity".to_owned(),
        };
        let mut source = Source::open(&path, &mapping, &ProgressBar::hidden())?;
        Ok(source.take(1000)?.unwrap_or_default())
    }

    proptest! {
        #[test]
        fn fuzz_orders_csv(bytes in inputs("orders_csv")) {
            for line in read("orders.csv", &bytes).unwrap_or_default() {
                prop_assert!(line.is_json && serde_json::from_slice::<Value>(&line.body).is_ok());
                prop_assert!(!line.routing_key.contains('.'));
            }
        }

        #[test]
        fn fuzz_orders_jsonl(bytes in inputs("orders_jsonl")) {
            for line in read("orders.jsonl", &bytes).unwrap_or_default() {
                let is_object = serde_json::from_slice::<Value>(&line.body).is_ok_and(|value| !value.is_array());
                prop_assert_eq!(line.is_json, is_object);
                prop_assert!(!line.body.contains(&b'\n') && !line.routing_key.contains('.'));
            }
        }
    }
}
