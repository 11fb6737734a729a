//! Certificates for the connections to servers.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use secrecy::{ExposeSecret, SecretString};

use super::{InvalidSettings, Settings};
use crate::hosts;
use crate::tls::{ClientCertificate, Tls};

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
        let [ca, certificate, key] = paths.map(Path::to_string_lossy);
        let mode = if ca.is_empty() { "" } else { "verify-full" };
        let with_files = hosts::edited(self.database_url.expose_secret(), |url| {
            let given: Vec<String> = url.query_pairs().map(|(name, _)| name.into_owned()).collect();
            for (name, value) in [
                ("sslmode", mode),
                ("sslrootcert", &ca),
                ("sslcert", &certificate),
                ("sslkey", &key),
            ] {
                if !value.is_empty() && !given.iter().any(|given| given == name) {
                    url.query_pairs_mut().append_pair(name, value);
                }
            }
        });
        if let Ok(url) = with_files {
            self.database_url = url.into();
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
        let [has_ca, has_certificate, has_key] =
            self.paths.map(|path| !path.as_os_str().is_empty());
        if (has_ca || has_certificate) && !url.expose_secret().starts_with(scheme) {
            let name = if has_ca { ca_name } else { certificate_name };
            let problem = format!("it is set, and {url_name} does not begin with {scheme}");
            return Err(InvalidSettings::Certificate { name, problem });
        }
        if has_certificate != has_key {
            let (name, missing) =
                if has_key { (key_name, certificate_name) } else { (certificate_name, key_name) };
            let problem = format!("it is set, and {missing} is not; accepted: both or none");
            return Err(InvalidSettings::Certificate { name, problem });
        }
        let refused = |number: usize, problem: String| {
            let (name, file) = (self.names[number], self.paths[number].display());
            InvalidSettings::Certificate { name, problem: format!("{file}: {problem}") }
        };
        let read = |number: usize| {
            let text = std::fs::read_to_string(self.paths[number]);
            text.map_err(|error| refused(number, format!("can't read it: {error}")))
        };
        let ca = || {
            let text = read(0)?;
            check_authorities(&text).map_err(|problem| refused(0, problem))?;
            Ok(text)
        };
        let client = || {
            let (certificate, key) = (read(1)?, read(2)?);
            let chain = certificates(&certificate).map_err(|problem| refused(1, problem))?;
            check_key(chain, &key).map_err(|problem| refused(2, problem))?;
            Ok(ClientCertificate { certificate, key: key.into() })
        };
        Ok(Tls {
            ca: has_ca.then(ca).transpose()?,
            client: has_certificate.then(client).transpose()?,
        })
    }
}

fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match found {
        Ok(none) if none.is_empty() => Err("it has no CERTIFICATE in PEM".to_owned()),
        found => found.map_err(|error| format!("a certificate can't be read: {error}")),
    }
}

/// Fails unless each certificate can be one of an authority.
fn check_authorities(text: &str) -> Result<(), String> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(text)? {
        store.add(certificate).map_err(|error| format!("a certificate can't be read: {error}"))?;
    }
    Ok(())
}

/// Fails unless `text` has the private key of the first certificate. Errors say nothing of what is in it.
fn check_key(chain: Vec<CertificateDer<'static>>, text: &str) -> Result<(), String> {
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| {
        if text.contains("ENCRYPTED") {
            "the key is encrypted; accepted: one that is not, in a file that only floodgate can read"
        } else {
            "it has no PRIVATE KEY in PEM"
        }
    })?;
    let certified = CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider());
    certified.map(drop).map_err(|error| format!("no key for the certificate: {error}"))
}
