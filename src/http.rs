//! The client for other services over HTTP: the user service, an identity provider, floodgate's API.

use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder};

/// A client, to be given its limits. It follows no redirects.
pub fn client() -> ClientBuilder {
    // The library leaves the choice of cryptography open. If there is a default already, it is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().redirect(Policy::none())
}
