//! TLS of the connections to servers.

use secrecy::SecretString;

/// How the connections to one server are secured. Without a CA the server's certificate must be signed by one
/// that this system trusts.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// The certificates of the authorities that sign the server's, in PEM.
    pub ca: Option<String>,
    /// What this client identifies itself with.
    pub client: Option<ClientCertificate>,
}

/// A client's certificate and its private key, in PEM.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct ClientCertificate {
    pub certificate: String,
    pub key: SecretString,
}
