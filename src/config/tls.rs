//! Certificates for the connections to servers.

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{InvalidSettings, Settings};

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

/// The settings that name the files for one server.
struct Files<'a> {
    /// The names of the settings: of the CA, the certificate and the key.
    names: [&'static str; 3],
    paths: [&'a Path; 3],
}

impl Settings {
    /// Certificates for RabbitMQ.
    pub fn amqp_tls(&self) -> Result<Tls, InvalidSettings> {
        let names = ["amqp_ca_file", "amqp_client_cert_file", "amqp_client_key_file"];
        let paths = [&self.amqp_ca_file, &self.amqp_client_cert_file, &self.amqp_client_key_file];
        let files = Files { names, paths: paths.map(PathBuf::as_path) };
        files.read(("amqp_url", &self.amqp_url, "amqps://"))
    }

    /// Certificates for Redis.
    pub fn redis_tls(&self) -> Result<Tls, InvalidSettings> {
        let names = ["redis_ca_file", "redis_client_cert_file", "redis_client_key_file"];
        let paths =
            [&self.redis_ca_file, &self.redis_client_cert_file, &self.redis_client_key_file];
        let files = Files { names, paths: paths.map(PathBuf::as_path) };
        files.read(("redis_url", &self.redis_url, "rediss://"))
    }

    /// Checks the certificates for PostgreSQL, and names their files in its URL, which has parameters for
    /// that. What the URL itself says stands; with a CA and no `sslmode` the server must be who it says.
    pub(super) fn add_database_tls(&mut self) -> Result<(), InvalidSettings> {
        let names = ["database_ca_file", "database_client_cert_file", "database_client_key_file"];
        let paths = [
            &self.database_ca_file,
            &self.database_client_cert_file,
            &self.database_client_key_file,
        ];
        let paths = paths.map(PathBuf::as_path);
        let files = Files { names, paths };
        files.read(("database_url", &self.database_url, "postgres"))?;
        let Ok(mut url) = self.database_url.expose_secret().parse::<Url>() else { return Ok(()) };
        let given: Vec<String> = url.query_pairs().map(|(name, _)| name.into_owned()).collect();
        let [ca, certificate, key] = paths.map(Path::to_string_lossy);
        let mode = if ca.is_empty() { "" } else { "verify-full" };
        for (name, value) in
            [("sslmode", mode), ("sslrootcert", &ca), ("sslcert", &certificate), ("sslkey", &key)]
        {
            if !value.is_empty() && !given.iter().any(|given| given == name) {
                url.query_pairs_mut().append_pair(name, value);
                self.database_url = url.to_string().into();
            }
        }
        Ok(())
    }
}

impl Files<'_> {
    /// Reads the files for the server that a setting names by `(name, url, scheme)`.
    fn read(
        &self,
        (url_name, url, scheme): (&'static str, &SecretString, &'static str),
    ) -> Result<Tls, InvalidSettings> {
        let [ca_name, certificate_name, key_name] = self.names;
        let [ca, certificate, key] = self.paths.map(|path| !path.as_os_str().is_empty());
        if (ca || certificate) && !url.expose_secret().starts_with(scheme) {
            let name = if ca { ca_name } else { certificate_name };
            let problem = format!("it is set, and {url_name} does not begin with {scheme}");
            return Err(InvalidSettings::Certificate { name, problem });
        }
        if certificate != key {
            let (name, missing) =
                if key { (key_name, certificate_name) } else { (certificate_name, key_name) };
            let problem = format!("it is set, and {missing} is not; accepted: both or none");
            return Err(InvalidSettings::Certificate { name, problem });
        }
        let read = |number: usize, wanted| pem(self.names[number], self.paths[number], wanted);
        let client = || {
            let (certificate, key) = (read(1, "CERTIFICATE")?, read(2, "PRIVATE KEY")?.into());
            Ok(ClientCertificate { certificate, key })
        };
        Ok(Tls {
            ca: ca.then(|| read(0, "CERTIFICATE")).transpose()?,
            client: certificate.then(client).transpose()?,
        })
    }
}

/// A file in PEM that has what is `wanted`.
fn pem(name: &'static str, path: &Path, wanted: &str) -> Result<String, InvalidSettings> {
    let file = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| InvalidSettings::Certificate {
        name,
        problem: format!("can't read {file}: {error}"),
    })?;
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.contains(wanted);
    if text.lines().any(begins) {
        return Ok(text);
    }
    let problem = format!("{file} has no {wanted} in PEM");
    Err(InvalidSettings::Certificate { name, problem })
}
