//! TLS on the public listener: one certificate chain and its private key from PEM files, reloaded when they change.
//!
//! rustls with ring provides TLS 1.2 and 1.3. ALPN offers only HTTP/1.1. Client certificates are not requested. `cli`
//! loads the files, `server` uses them to accept connections, and `reload` watches them.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};
use tokio_rustls::TlsAcceptor;

use crate::http::reload::{self, ApplyOutcome, Watched};
use crate::http::settings::TlsSettings;

/// Why the files cannot be used as a certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct TlsError {
    /// `tls_certificate` or `tls_key`.
    pub setting: &'static str,
    /// What is wrong. The text contains no part of the file's content.
    pub reason: String,
}

/// TLS for a listener: the certificate that the server presents, and the acceptor that performs handshakes.
pub struct Tls {
    acceptor: TlsAcceptor,
    identity: Arc<Identity>,
}

/// The certificate and its key, which a reload replaces together.
#[derive(Debug)]
pub(crate) struct Identity {
    settings: TlsSettings,
    provider: CryptoProvider,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Tls {
    /// Reads the certificate and the key.
    ///
    /// # Errors
    /// If one of them cannot be read or used, or if they do not belong together.
    ///
    /// # Panics
    /// Never, because ring supports both TLS 1.2 and TLS 1.3.
    pub fn load(settings: &TlsSettings) -> Result<Self, TlsError> {
        let refused = |setting, reason| TlsError { setting, reason };
        let certificate = reload::read(&settings.certificate)
            .map_err(|reason| refused("tls_certificate", reason))?;
        let key = reload::read(&settings.key).map_err(|reason| refused("tls_key", reason))?;
        let provider = ring::default_provider();
        let certified = certified(&certificate, &key, &provider)?;
        let identity = Arc::new(Identity {
            settings: settings.clone(),
            provider: provider.clone(),
            current: RwLock::new(Arc::new(certified)),
        });
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .expect("ring has cipher suites for both versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&identity) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), identity })
    }

    /// Returns the acceptor, which performs the TLS handshake on a connection.
    pub(crate) fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }

    /// Returns the certificate and key, which `reload` watches.
    pub(crate) fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity)
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("settings", &self.identity.settings).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // No code panics while it holds this lock, so a poisoned lock cannot occur.
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Watched for Identity {
    fn name(&self) -> &'static str {
        "certificate"
    }

    fn advice(&self) -> &'static str {
        "keeping the current one: put a valid certificate and its key into the files of server.tls_certificate and \
         server.tls_key"
    }

    fn paths(&self) -> Vec<&Path> {
        vec![&self.settings.certificate, &self.settings.key]
    }

    fn apply(&self, contents: &[Vec<u8>]) -> Result<ApplyOutcome, String> {
        let [certificate, key] = contents else { return Ok(ApplyOutcome::Unchanged) };
        let certified =
            certified(certificate, key, &self.provider).map_err(|error| error.to_string())?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.cert == certified.cert {
            return Ok(ApplyOutcome::Unchanged);
        }
        *current = Arc::new(certified);
        Ok(ApplyOutcome::Changed("new connections get the new certificate".to_owned()))
    }
}

/// Parses a certificate chain and the key of its first certificate from PEM, and checks that they belong together.
fn certified(
    certificate: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let refused =
        |setting, reason: &dyn std::fmt::Display| TlsError { setting, reason: reason.to_string() };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .map_err(|error| refused("tls_certificate", &error))?;
    if chain.is_empty() {
        return Err(refused("tls_certificate", &"the file contains no certificate in PEM format"));
    }
    // Drop the parser's message, because it could contain a part of the key.
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
        refused("tls_key", &"the file contains no unencrypted private key in PEM format")
    })?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| {
        if matches!(error, rustls::Error::InconsistentKeys(_)) {
            return refused("tls_key", &"the key does not belong to the certificate");
        }
        let is_certificate = matches!(error, rustls::Error::InvalidCertificate(_));
        refused(if is_certificate { "tls_certificate" } else { "tls_key" }, &error)
    })
}
