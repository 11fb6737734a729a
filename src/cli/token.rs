//! `floodgate token`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use chrono::Utc;
use clap::Args;
use serde_json::{Value, json};

use super::output;
use crate::api::auth::{Refusal, SigningKey, TokenVerifier};
use crate::app::App;
use crate::domain::order::UserId;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    export FLOODGATE_API__JWT_SECRET=$(openssl rand -hex 32)    (for floodgate up, too)\n  \
    curl http://127.0.0.1:8080/v1/sales/bottles/orders -H 'content-type: application/json' \\\n      \
    -H \"authorization: Bearer $(floodgate token --sub ada)\" -d '{\"quantity\": 1}'\n  \
    floodgate token --private-key key.pem --kid 2026-11 --sub desk --scope floodgate:admin\n\n\
    Signs with api.jwt_secret (HS256), or with the key in FILE: RSA (RS256), EC P-256 (ES256) or Ed25519 \
    (EdDSA). `iss` and `aud` are api.jwt_issuer and api.jwt_audience. Prints the token alone.")]
pub(super) struct Token {
    /// The buyer; without it the token names no user
    #[arg(long, value_name = "USER")]
    sub: Option<UserId>,
    /// What the token allows, such as floodgate:submit or floodgate:admin; repeat it for more
    #[arg(long, value_name = "SCOPE", value_parser = scope)]
    scope: Vec<String>,
    /// Seconds until it expires
    #[arg(long, value_name = "N", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..))]
    expires_in_s: u32,
    /// Sign with the private key in this file, PKCS#8 in PEM, instead of api.jwt_secret
    #[arg(long, value_name = "FILE")]
    private_key: Option<PathBuf>,
    /// The id of that key in the API's key set
    #[arg(long, requires = "private_key")]
    kid: Option<String>,
}

impl Token {
    pub(super) fn run(self, app: &App) -> Result<()> {
        let key = self.key(app)?;
        let claims = self.claims(app);
        let token = key.token(self.kid.as_deref(), &claims)?;
        if let Some(refusal) = refusal(app, &token) {
            eprintln!("The API would refuse this token with these settings: {refusal}.");
        }
        output::text(&format!("{token}\n"))
    }

    fn key(&self, app: &App) -> Result<SigningKey> {
        let settings = &app.settings().api;
        if let Some(path) = &self.private_key {
            let file = || format!("--private-key {}", path.display());
            let pem = std::fs::read(path).with_context(file)?;
            return SigningKey::from_pem(&pem).with_context(file);
        }
        if let Some(key) = SigningKey::from_secret(&settings.jwt_secret).context("settings: api")? {
            return Ok(key);
        }
        if settings.jwt_public_key.is_empty() && settings.jwt_jwks.is_empty() {
            bail!(
                "no key is configured; set FLOODGATE_API__JWT_SECRET to a secret of 32 bytes or more, here \
                 and for the API, or sign with --private-key FILE"
            );
        }
        bail!(
            "the API takes tokens that a private key has signed, and none is in its settings; name it with \
             --private-key FILE"
        )
    }

    fn claims(&self, app: &App) -> Value {
        let settings = &app.settings().api;
        let now = Utc::now().timestamp();
        let mut claims = json!({ "iat": now, "exp": now + i64::from(self.expires_in_s) });
        let sub = self.sub.as_ref().map(UserId::as_str).unwrap_or_default();
        for (name, value) in [
            ("sub", sub),
            ("scope", &self.scope.join(" ")),
            ("iss", &settings.jwt_issuer),
            ("aud", &settings.jwt_audience),
        ] {
            if !value.is_empty() {
                claims[name] = value.into();
            }
        }
        claims
    }
}

/// Why an API with these settings would refuse `token`, as far as can be told without asking a server.
fn refusal(app: &App, token: &str) -> Option<Refusal> {
    let token_verifier = TokenVerifier::from_settings(&app.settings().api).ok().flatten()?;
    let verified = token_verifier.verify(Some(&format!("Bearer {token}")), Utc::now());
    verified.err().filter(|refusal| *refusal != Refusal::NoKeys)
}

/// One scope, or more of them, space separated, in the characters of RFC 6749 section 3.3.
fn scope(text: &str) -> Result<String, &'static str> {
    let allowed = |byte| matches!(byte, b' ' | b'!' | b'#'..=b'[' | b']'..=b'~');
    if text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(
            "a scope has a character that is not accepted; accepted: visible ASCII without \" and \\",
        )
    }
}
