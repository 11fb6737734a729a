//! The client for other services over HTTP: the user service, an identity provider, floodgate's API.

use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder};

/// Chooses the cryptography of every client in this process: the library leaves that open.
pub fn choose_cryptography() {
    // If there is a default already, it is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A client, to be given its limits. It follows no redirects.
pub fn client() -> ClientBuilder {
    choose_cryptography();
    Client::builder().redirect(Policy::none())
}
