//! Secrets and signatures, as the Standard Webhooks specification has them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use ring::hmac::{HMAC_SHA256, Key, sign as hmac};
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

/// Begins every secret as people see it.
const PREFIX: &str = "whsec_";
/// Bytes of a secret. The specification accepts 24 to 64.
const BYTES: usize = 32;
/// The most that a webhook has.
const MAX_SECRETS: usize = 5;

/// What a webhook's requests are signed with.
#[derive(Debug, Clone)]
pub struct Secret {
    text: SecretString,
    /// Until when; `None`: for as long as there is no newer one.
    until: Option<DateTime<Utc>>,
}

/// A secret as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    secret: String,
    until: Option<DateTime<Utc>>,
}

impl Secret {
    /// A new one, from the system's randomness.
    ///
    /// # Panics
    ///
    /// If the system has none.
    pub fn new() -> Self {
        let mut bytes = [0; BYTES];
        let filled = SystemRandom::new().fill(&mut bytes);
        assert!(filled.is_ok(), "the system gives no random bytes");
        Self { text: format!("{PREFIX}{}", STANDARD.encode(bytes)).into(), until: None }
    }

    /// As the receiver needs it: `whsec_` and base64.
    pub fn expose(&self) -> &str {
        self.text.expose_secret()
    }

    /// Those of `secrets` that are valid at `now`, behind a new one; the one before it is valid until `until`.
    pub fn rotated(secrets: Vec<Self>, now: DateTime<Utc>, until: DateTime<Utc>) -> Vec<Self> {
        let old = secrets.into_iter().map(|old| Self { until: old.until.or(Some(until)), ..old });
        let valid = old.filter(|old| old.until.is_some_and(|until| now < until));
        std::iter::once(Self::new()).chain(valid).take(MAX_SECRETS).collect()
    }

    fn key(&self) -> Key {
        let base64 = self.expose().strip_prefix(PREFIX).unwrap_or_default();
        Key::new(HMAC_SHA256, &STANDARD.decode(base64).unwrap_or_default())
    }

    /// Secrets as one text, to be stored.
    pub(crate) fn to_text(secrets: &[Self]) -> String {
        let stored = secrets.iter().map(|Self { text, until }| Stored {
            secret: text.expose_secret().to_owned(),
            until: *until,
        });
        serde_json::to_string(&stored.collect::<Vec<_>>())
            .unwrap_or_else(|error| unreachable!("strings and times: {error}"))
    }

    /// Secrets from such a text.
    pub(crate) fn from_text(text: &str) -> Result<Vec<Self>, serde_json::Error> {
        let stored: Vec<Stored> = serde_json::from_str(text)?;
        Ok(stored
            .into_iter()
            .map(|Stored { secret, until }| Self { text: secret.into(), until })
            .collect())
    }
}

impl Default for Secret {
    fn default() -> Self {
        Self::new()
    }
}

/// The header `webhook-signature`: a signature by each secret that is valid at `at_s`, seconds since 1970, separated by spaces.
pub fn sign(secrets: &[Secret], message_id: &str, at_s: i64, body: &[u8]) -> String {
    let content = [message_id.as_bytes(), b".", at_s.to_string().as_bytes(), b".", body].concat();
    let is_valid = |secret: &&Secret| secret.until.is_none_or(|until| at_s < until.timestamp());
    let signatures = secrets
        .iter()
        .filter(is_valid)
        .map(|secret| format!("v1,{}", STANDARD.encode(hmac(&secret.key(), &content))));
    signatures.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_the_specifications_example() {
        let text = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned();
        let secret = Secret { text: text.into(), until: None };
        let signature = sign(
            &[secret],
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn every_valid_secret_signs_and_none_is_shown() {
        let (old, new) = (Secret::new(), Secret::new());
        let old = Secret { until: DateTime::from_timestamp(100, 0), ..old };
        let secrets = Secret::from_text(&Secret::to_text(&[new, old])).unwrap();
        assert_eq!(sign(&secrets, "m", 99, b"x").split(' ').count(), 2);
        assert_eq!(sign(&secrets, "m", 100, b"x").split(' ').count(), 1);
        assert!(!format!("{secrets:?}").contains(&secrets[0].expose()[10..]));
    }
}
