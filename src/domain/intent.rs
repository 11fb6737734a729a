//! From the bytes of a message to intents, or to the reason why not.
//!
//! A message is one intent object or an array of them. Each element of an array stands on its own:
//! a bad one is refused with its own bytes, its neighbours go on.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::event::rfc3339;
use crate::domain::order::{Intent, InvalidId, Order, OrderId, Quantity, SaleId, UserId};
use crate::domain::whole::{shown, whole_number};

/// Bounds on what one message may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest body that is parsed, in bytes.
    pub max_body_bytes: usize,
    /// The most intents in one array.
    pub max_intents: usize,
}

/// What is wrong with a message or an element of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The body is larger than [`Limits::max_body_bytes`].
    BodyTooLarge,
    /// The message says it is compressed or otherwise encoded.
    UnsupportedEncoding,
    /// Not JSON.
    BadJson,
    /// An array without elements.
    EmptyArray,
    /// An array of more than [`Limits::max_intents`].
    ArrayTooLong,
    /// A field is absent or null.
    MissingField,
    /// JSON of another type than expected, or a field given twice.
    WrongType,
    /// An id is empty, too long, or has a character that is not accepted.
    BadId,
    /// The quantity is not in 1 to [`Quantity::MAX`].
    QuantityOutOfRange,
    /// `submitted_at` is no RFC 3339 time.
    BadTime,
}

impl Fault {
    /// Every fault, in the order of the documentation.
    pub const ALL: [Self; 10] = [
        Self::BodyTooLarge,
        Self::UnsupportedEncoding,
        Self::BadJson,
        Self::EmptyArray,
        Self::ArrayTooLong,
        Self::MissingField,
        Self::WrongType,
        Self::BadId,
        Self::QuantityOutOfRange,
        Self::BadTime,
    ];

    /// The word that goes with a dead letter as its reason.
    pub fn name(self) -> &'static str {
        match self {
            Self::BodyTooLarge => "body_too_large",
            Self::UnsupportedEncoding => "unsupported_encoding",
            Self::BadJson => "bad_json",
            Self::EmptyArray => "empty_array",
            Self::ArrayTooLong => "array_too_long",
            Self::MissingField => "missing_field",
            Self::WrongType => "wrong_type",
            Self::BadId => "bad_id",
            Self::QuantityOutOfRange => "quantity_out_of_range",
            Self::BadTime => "bad_time",
        }
    }
}

/// Why bytes hold no intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of fault.
    pub fault: Fault,
    /// What was wrong and what is accepted, for a person to read.
    pub detail: String,
}

/// A message, or one element of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element<'a> {
    /// It, as it came.
    pub bytes: &'a [u8],
    /// What it says.
    pub intent: Result<Intent, Refusal>,
}

/// Takes a message apart. Gives one result for each element, in their order, or a single refusal
/// when the message can't be taken apart at all. Never gives an empty list.
pub fn parse(body: &[u8], limits: Limits) -> Vec<Element<'_>> {
    let whole =
        |fault, detail| vec![Element { bytes: body, intent: Err(Refusal { fault, detail }) }];
    if body.len() > limits.max_body_bytes {
        let detail =
            format!("the body has {} bytes; accepted: up to {}", body.len(), limits.max_body_bytes);
        return whole(Fault::BodyTooLarge, detail);
    }
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'[') {
        return vec![parse_one(body)];
    }
    match serde_json::from_slice::<Vec<&RawValue>>(body) {
        Err(error) => whole(Fault::BadJson, error.to_string()),
        Ok(elements) if elements.is_empty() => {
            whole(Fault::EmptyArray, "the array has no intent in it".into())
        }
        Ok(elements) if elements.len() > limits.max_intents => {
            let detail = format!(
                "the array has {} elements; accepted: up to {}",
                elements.len(),
                limits.max_intents
            );
            whole(Fault::ArrayTooLong, detail)
        }
        Ok(elements) => elements.into_iter().map(|raw| parse_one(raw.get().as_bytes())).collect(),
    }
}

/// `order` as the body of a message.
pub fn to_json(order: &Order, submitted_at: DateTime<Utc>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Written<'a> {
        #[serde(flatten)]
        order: &'a Order,
        submitted_at: String,
    }
    let written = Written { order, submitted_at: rfc3339(submitted_at) };
    serde_json::to_vec(&written)
        .unwrap_or_else(|error| unreachable!("strings and numbers: {error}"))
}

/// An intent as it is on the wire. Every field is optional here, so that a missing one is told
/// from one of the wrong type.
#[derive(Deserialize)]
#[serde(expecting = "an intent object")]
struct Wire<'a> {
    order_id: Option<String>,
    sale_id: Option<String>,
    user_id: Option<String>,
    #[serde(borrow)]
    quantity: Option<&'a RawValue>,
    submitted_at: Option<String>,
}

fn parse_one(bytes: &[u8]) -> Element<'_> {
    let intent = serde_json::from_slice::<Wire<'_>>(bytes)
        .map_err(|error| explain(bytes, &error))
        .and_then(Wire::into_intent);
    Element { bytes, intent }
}

fn refuse<T>(fault: Fault, detail: String) -> Result<T, Refusal> {
    Err(Refusal { fault, detail })
}

/// Sorts a serde error, and finds the field it is about by reading the bytes a second time: only
/// bad input pays for that.
fn explain(bytes: &[u8], error: &serde_json::Error) -> Refusal {
    if !error.is_data() {
        return Refusal { fault: Fault::BadJson, detail: error.to_string() };
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let detail = match serde_path_to_error::deserialize::<_, Wire<'_>>(&mut reader) {
        Err(located) if located.path().iter().next().is_some() => located.to_string(),
        _ => error.to_string(),
    };
    Refusal { fault: Fault::WrongType, detail }
}

impl Wire<'_> {
    fn into_intent(self) -> Result<Intent, Refusal> {
        let bad_id =
            |invalid: InvalidId| Refusal { fault: Fault::BadId, detail: invalid.to_string() };
        let order = Order {
            id: OrderId::parse(required("order_id", self.order_id)?).map_err(bad_id)?,
            sale_id: SaleId::parse(required("sale_id", self.sale_id)?).map_err(bad_id)?,
            user_id: UserId::parse(required("user_id", self.user_id)?).map_err(bad_id)?,
            quantity: quantity(required("quantity", self.quantity)?.get())?,
        };
        let submitted_at = self.submitted_at.as_deref().map(time).transpose()?;
        Ok(Intent { order, submitted_at })
    }
}

fn required<T>(field: &str, value: Option<T>) -> Result<T, Refusal> {
    match value {
        Some(value) => Ok(value),
        None => refuse(Fault::MissingField, format!("{field} is missing or null")),
    }
}

fn quantity(number: &str) -> Result<Quantity, Refusal> {
    if let Some(quantity) = whole_number(number).and_then(Quantity::new) {
        return Ok(quantity);
    }
    let is_whole = |value: f64| value.fract() == 0.0 || value.is_infinite();
    let is_out_of_range = number.parse().is_ok_and(is_whole);
    let fault = if is_out_of_range { Fault::QuantityOutOfRange } else { Fault::WrongType };
    let (shown, most) = (shown(number), Quantity::MAX);
    refuse(fault, format!("quantity is {shown}; accepted: a whole number from 1 to {most}"))
}

fn time(text: &str) -> Result<DateTime<Utc>, Refusal> {
    match DateTime::parse_from_rfc3339(text) {
        Ok(time) => Ok(time.to_utc()),
        Err(error) => refuse(
            Fault::BadTime,
            format!(
                "submitted_at is no time ({error}); accepted: RFC 3339, such as 2026-11-27T08:00:00Z"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_body_bytes: 4096, max_intents: 3 };
    const GOOD: &str = r#"{"order_id":"o-1","sale_id":"s","user_id":"u","quantity":2}"#;

    fn fault_of(body: &str) -> Fault {
        let mut elements = parse(body.as_bytes(), LIMITS);
        assert_eq!(elements.len(), 1, "{body}");
        let element = elements.remove(0);
        assert_eq!(element.bytes, body.as_bytes());
        let refusal = element.intent.unwrap_err();
        assert!(!refusal.detail.is_empty());
        refusal.fault
    }

    #[test]
    fn an_object_is_one_intent() {
        let body = r#" {"order_id":"o-1","sale_id":"s","user_id":"u","quantity":2,
            "submitted_at":"2026-11-27T08:00:00+01:00","unknown":[1]}"#;
        let intent = parse(body.as_bytes(), LIMITS).remove(0).intent.unwrap();
        assert_eq!(intent.order.quantity.get(), 2);
        assert_eq!(intent.submitted_at.unwrap().to_rfc3339(), "2026-11-27T07:00:00+00:00");
    }

    #[test]
    fn each_kind_of_bad_input_has_its_own_fault() {
        let with = |field: &str, value: &str| {
            let mut object: serde_json::Value = serde_json::from_str(GOOD).unwrap();
            object[field] = serde_json::from_str(value).unwrap();
            object.to_string()
        };
        for (body, fault) in [
            (String::new(), Fault::BadJson),
            ("{".into(), Fault::BadJson),
            (format!("{GOOD} x"), Fault::BadJson),
            (format!("[{GOOD},"), Fault::BadJson),
            ("[]".into(), Fault::EmptyArray),
            (format!("[{GOOD},{GOOD},{GOOD},{GOOD}]"), Fault::ArrayTooLong),
            (" ".repeat(5000), Fault::BodyTooLarge),
            ("5".into(), Fault::WrongType),
            ("null".into(), Fault::WrongType),
            (with("order_id", "7"), Fault::WrongType),
            (with("quantity", "\"2\""), Fault::WrongType),
            (with("quantity", "1.5"), Fault::WrongType),
            (with("order_id", "null"), Fault::MissingField),
            (r#"{"order_id":"o","sale_id":"s","user_id":"u"}"#.into(), Fault::MissingField),
            (with("user_id", "\"\""), Fault::BadId),
            (with("sale_id", "\"a.b\""), Fault::BadId),
            (with("order_id", "\"a\\u0000\""), Fault::BadId),
            (with("quantity", "0"), Fault::QuantityOutOfRange),
            (with("quantity", "-3"), Fault::QuantityOutOfRange),
            (with("quantity", "1000001"), Fault::QuantityOutOfRange),
            (with("quantity", "99999999999999999999"), Fault::QuantityOutOfRange),
            (with("submitted_at", "\"yesterday\""), Fault::BadTime),
        ] {
            assert_eq!(fault_of(&body), fault, "{body}");
        }
    }

    #[test]
    fn bytes_that_are_no_utf8_are_bad_json() {
        let elements = parse(b"{\"order_id\":\"\xff\"}", LIMITS);
        assert_eq!(elements[0].intent.as_ref().unwrap_err().fault, Fault::BadJson);
    }

    #[test]
    fn a_wrong_type_names_its_field() {
        let body = r#"{"order_id":"o","sale_id":4,"user_id":"u","quantity":1}"#;
        let detail = parse(body.as_bytes(), LIMITS).remove(0).intent.unwrap_err().detail;
        assert!(detail.starts_with("sale_id: invalid type: integer `4`"), "{detail}");
    }

    #[test]
    fn a_bad_element_is_refused_alone_with_its_own_bytes() {
        let body = format!("[{GOOD}, {{\"order_id\": 1}} ,{GOOD}]");
        let elements = parse(body.as_bytes(), LIMITS);
        assert_eq!(elements.iter().filter(|element| element.intent.is_ok()).count(), 2);
        assert!(elements[1].intent.is_err());
        assert_eq!(elements[1].bytes, b"{\"order_id\": 1}");
    }
}

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::inputs;

    proptest! {
        #[test]
        fn fuzz_intents(body in inputs("intents")) {
            let limits = Limits { max_body_bytes: 4096, max_intents: 8 };
            let elements = parse(&body, limits);
            prop_assert!(!elements.is_empty());
            for element in elements {
                let range = body.as_ptr_range();
                let part = element.bytes.as_ptr_range();
                prop_assert!(range.start <= part.start && part.end <= range.end);
                match element.intent {
                    Ok(Intent { order, submitted_at }) => {
                        let at = submitted_at.unwrap_or_default();
                        let again = to_json(&order, at);
                        let again = parse(&again, limits).remove(0).intent;
                        prop_assert_eq!(again.map(|intent| intent.order).ok(), Some(order));
                    }
                    Err(Refusal { fault, detail }) => {
                        prop_assert!(Fault::ALL.contains(&fault) && !detail.is_empty());
                    }
                }
            }
        }
    }
}
