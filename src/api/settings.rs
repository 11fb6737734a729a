//! The settings of the API.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;
use serde::Deserialize;
use serde_with::{DurationMilliSeconds, DurationSeconds, serde_as};

/// Section `api` of the settings, described in `config/floodgate.toml`.
#[serde_as]
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ApiSettings {
    pub listen: SocketAddr,
    pub public_url: String,
    #[serde(deserialize_with = "crate::hosts::networks")]
    pub trusted_proxies: Vec<IpNet>,
    pub cors_origins: Vec<String>,
    pub jwt_secret: SecretString,
    pub jwt_public_key: String,
    pub jwt_jwks: String,
    #[serde(rename = "jwt_jwks_refresh_s")]
    #[serde_as(as = "DurationSeconds<u64>")]
    pub jwt_jwks_refresh: Duration,
    pub jwt_issuer: String,
    pub jwt_audience: String,
    pub metrics_open: bool,
    #[serde(rename = "max_predicted_wait_s")]
    #[serde_as(as = "DurationSeconds<u64>")]
    pub max_predicted_wait: Duration,
    pub max_body_bytes: usize,
    pub max_batch_bytes: usize,
    pub max_header_bytes: usize,
    #[serde(rename = "request_timeout_ms")]
    #[serde_as(as = "DurationMilliSeconds<u64>")]
    pub request_timeout: Duration,
    #[serde(rename = "max_wait_s")]
    #[serde_as(as = "DurationSeconds<u64>")]
    pub max_wait: Duration,
    pub max_in_flight: usize,
    pub max_in_flight_per_address: usize,
    pub max_in_flight_per_buyer: usize,
    pub max_slow_bodies_per_address: usize,
    pub max_connections: usize,
    pub max_connections_per_address: usize,
    pub max_streams: usize,
    pub max_streams_per_address: usize,
    pub buyer_orders_per_s: NonZeroU32,
    pub buyer_burst: NonZeroU32,
    #[serde(rename = "drain_deadline_s")]
    #[serde_as(as = "DurationSeconds<u64>")]
    pub drain_deadline: Duration,
}
