//! A user in what one dead letter holds.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::domain::order::{SaleId, UserId};

const FIELD: &str = "user_id";
/// Arrays and objects in each other, at most. What is deeper is taken as text, like what is no JSON.
const MAX_DEPTH: usize = 32;

/// The token of the user in a sale, as far as that is known.
pub(super) type TokenOf<'a> = dyn FnMut(Option<&SaleId>) -> UserId + 'a;

/// `body` with the token of each object's sale in the place of the user, in every field `user_id`; `None` if it has
/// none with the user. All else stays as it was, to the byte, also in a body that is no JSON.
pub(super) fn replaced(body: &[u8], user: &UserId, token_of: &mut TokenOf<'_>) -> Option<Vec<u8>> {
    if let Ok(text) = str::from_utf8(body)
        && let Ok(json) = serde_json::from_str::<&RawValue>(text)
    {
        let mut writer = Writer { user, token_of, written: Vec::new(), is_changed: false };
        if writer.parts(text, &[(json, false)], None, 0).is_some() {
            return writer.is_changed.then_some(writer.written);
        }
    }
    in_text(body, user, token_of)
}

/// Why a letter died, without the user; `None` if it does not name the user. A `user_id` of another type is named there.
pub(super) fn detail_without(detail: &str, user: &UserId) -> Option<String> {
    let value = format!("`{user}`");
    (detail.starts_with(FIELD) && detail.contains(&value))
        .then(|| detail.replace(&value, "`erased`"))
}

/// Writes JSON as it was, but for the user.
struct Writer<'a, 'b> {
    user: &'a UserId,
    token_of: &'a mut TokenOf<'b>,
    written: Vec<u8>,
    is_changed: bool,
}

impl Writer<'_, '_> {
    /// Writes `text` with its `parts`, each of which is in a field `user_id` or not. `None`: it is too deep.
    fn parts(
        &mut self,
        text: &str,
        parts: &[(&RawValue, bool)],
        sale: Option<&SaleId>,
        depth: usize,
    ) -> Option<()> {
        let mut done = 0;
        for (part, is_users) in parts {
            let begins = part.get().as_ptr().addr() - text.as_ptr().addr();
            self.written.extend_from_slice(&text.as_bytes()[done..begins]);
            self.value(part, *is_users, sale, depth)?;
            done = begins + part.get().len();
        }
        self.written.extend_from_slice(&text.as_bytes()[done..]);
        Some(())
    }

    fn value(
        &mut self,
        raw: &RawValue,
        is_users: bool,
        sale: Option<&SaleId>,
        depth: usize,
    ) -> Option<()> {
        let text = raw.get();
        if depth > MAX_DEPTH {
            return None;
        }
        if text.starts_with('[') {
            let elements: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            let parts: Vec<_> = elements.into_iter().map(|element| (element, is_users)).collect();
            return self.parts(text, &parts, sale, depth + 1);
        }
        if text.starts_with('{') {
            let Fields(fields) = serde_json::from_str(text).ok()?;
            let own = fields.iter().find(|(name, _)| name == "sale_id");
            let own = own.and_then(|(_, id)| serde_json::from_str::<String>(id.get()).ok());
            let own = own.and_then(|id| SaleId::parse(id).ok());
            let parts: Vec<_> =
                fields.iter().map(|(name, part)| (*part, is_users || name == FIELD)).collect();
            return self.parts(text, &parts, own.as_ref().or(sale), depth + 1);
        }
        if !is_users {
            self.written.extend_from_slice(text.as_bytes());
        } else if serde_json::from_str(text).is_ok_and(|id: String| id == self.user.as_str()) {
            let token = (self.token_of)(sale);
            self.written.extend_from_slice(format!("\"{token}\"").as_bytes());
            self.is_changed = true;
        } else if text == self.user.as_str() && text != NOBODY {
            self.written.extend_from_slice(NOBODY.as_bytes());
            self.is_changed = true;
        } else {
            self.written.extend_from_slice(text.as_bytes());
        }
        Some(())
    }
}

/// Takes the place of an id that is no string. With a token the letter would become an order, which it never was.
const NOBODY: &str = "null";

/// The fields of an object as they are written, also those that are there twice.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct All;

        impl<'de> Visitor<'de> for All {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        from.deserialize_map(All)
    }
}

/// The same in a text of any form, where it cannot be told what belongs to which sale.
fn in_text(body: &[u8], user: &UserId, token_of: &mut TokenOf<'_>) -> Option<Vec<u8>> {
    let (field, id) = (format!("\"{FIELD}\""), user.as_str());
    let (as_text, mut changed, mut rest, mut is_changed) =
        (format!("\"{id}\""), Vec::new(), body, false);
    while let Some(at) = find(rest, field.as_bytes()) {
        let (before, after) = rest.split_at(at + field.len());
        changed.extend_from_slice(before);
        rest = after;
        let begins = after.iter().position(|byte| !byte.is_ascii_whitespace() && *byte != b':');
        let Some(begins) = begins else { break };
        let (value, is_text) = (&after[begins..], after[begins..].starts_with(as_text.as_bytes()));
        let ends =
            value.iter().position(|byte| byte.is_ascii_whitespace() || b",}]".contains(byte));
        let is_other = &value[..ends.unwrap_or(value.len())] == id.as_bytes() && id != NOBODY;
        if is_text || is_other {
            changed.extend_from_slice(&after[..begins]);
            let put = if is_text { format!("\"{}\"", token_of(None)) } else { NOBODY.to_owned() };
            changed.extend_from_slice(put.as_bytes());
            rest = &value[if is_text { as_text.len() } else { id.len() }..];
            is_changed = true;
        }
    }
    changed.extend_from_slice(rest);
    is_changed.then_some(changed)
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a body with the user `1`, whose token in a sale is `t-` and the sale.
    fn is(body: &str) -> Option<String> {
        let mut token = |sale: Option<&SaleId>| {
            let sale = sale.map_or_else(|| "none".to_owned(), ToString::to_string);
            UserId::parse(format!("t-{sale}")).unwrap()
        };
        let changed = replaced(body.as_bytes(), &UserId::parse("1").unwrap(), &mut token)?;
        Some(String::from_utf8(changed).unwrap())
    }

    #[test]
    fn only_the_users_field_is_replaced() {
        for (body, expected) in [
            (
                r#"{"quantity":1,"user_id":"1","order_id":"1"}"#,
                r#"{"quantity":1,"user_id":"t-none","order_id":"1"}"#,
            ),
            (
                r#" [{"user_id" : "1"},{"user_id":"2"}, {"user_id":"1"}] "#,
                r#" [{"user_id" : "t-none"},{"user_id":"2"}, {"user_id":"t-none"}] "#,
            ),
            (r#"{"user_id":"1", no JSON"#, r#"{"user_id":"t-none", no JSON"#),
            (r#"{"user_id":"\u0031"}"#, r#"{"user_id":"t-none"}"#),
            (r#"{"\u0075ser_id":"1"}"#, r#"{"\u0075ser_id":"t-none"}"#),
            (r#"{"a":1e999,"user_id":"1","a":2}"#, r#"{"a":1e999,"user_id":"t-none","a":2}"#),
        ] {
            assert_eq!(is(body).as_deref(), Some(expected));
        }
        for other in
            [r#"{"user_id":"12","quantity":1}"#, r#"{"user_id""#, "1", r#"{"order_id":"1"}"#]
        {
            assert_eq!(is(other), None, "{other}");
        }
    }

    #[test]
    fn each_object_gets_the_token_of_its_own_sale() {
        let body = r#"[{"sale_id":"a","user_id":"1"}, {"user_id":"1","sale_id":"b","x":{"user_id":"1"}},
            {"user_id":"1","sale_id":"no sale"},{"user_id":"2","sale_id":"c"}]"#;
        let expected = r#"[{"sale_id":"a","user_id":"t-a"}, {"user_id":"t-b","sale_id":"b","x":{"user_id":"t-b"}},
            {"user_id":"t-none","sale_id":"no sale"},{"user_id":"2","sale_id":"c"}]"#;
        assert_eq!(is(body).as_deref(), Some(expected));
    }

    #[test]
    fn an_id_that_is_no_string_makes_no_order() {
        for (body, expected) in [
            (r#"{"user_id":1,"quantity":1}"#, r#"{"user_id":null,"quantity":1}"#),
            (r#"{"user_id": 1, no JSON"#, r#"{"user_id": null, no JSON"#),
            (r#"{"user_id":["1",12,{"id":1}]}"#, r#"{"user_id":["t-none",12,{"id":null}]}"#),
        ] {
            assert_eq!(is(body).as_deref(), Some(expected));
        }
        for other in [r#"{"user_id":12}"#, r#"{"user_id":1.5}"#, r#"{"user_id":12, no JSON"#] {
            assert_eq!(is(other), None, "{other}");
        }
        let user = UserId::parse("1").unwrap();
        let detail = "user_id: invalid type: integer `1`, expected a string at line 1 column 9";
        let without =
            "user_id: invalid type: integer `erased`, expected a string at line 1 column 9";
        assert_eq!(detail_without(detail, &user).as_deref(), Some(without));
        for other in ["user_id: invalid type: integer `12`", "order_id: invalid type: integer `1`"]
        {
            assert_eq!(detail_without(other, &user), None);
        }
    }

    #[test]
    fn a_body_of_any_depth_is_looked_at() {
        let deep = |value: &str| format!("{}{value}{}", "[".repeat(200_000), "]".repeat(200_000));
        let (with, without) = (r#"{"user_id":"1"}"#, r#"{"user_id":"t-none"}"#);
        assert_eq!(is(&deep(with)), Some(deep(without)));
        assert_eq!(is(&deep("")), None);
    }
}
