//! Checks of what others can reach and read: addresses, keys, TLS, files with secrets.

use std::io::ErrorKind;
use std::net::SocketAddr;

use super::Finding;
use super::certificate::{Certificate, Validity};
use super::machine::Machine;
use crate::app::port;
use crate::config::Config;

const DAY: i64 = 86_400;

/// A certificate that ends within this many days is a warning. Certificates of Let's Encrypt are renewed 30 days before
/// their end.
const SOON_DAYS: i64 = 14;

pub(super) fn check(config: &Config, machine: &Machine) -> Vec<Finding> {
    let mut findings: Vec<Finding> = machine
        .addresses
        .iter()
        .map(|(setting, address, bound)| listening(setting, *address, *bound))
        .collect();
    findings.extend(access(config));
    findings.extend(certificate(machine.certificate, machine.now));
    for (setting, path, mode) in &machine.secrets {
        findings.push(secret(setting, &path.display().to_string(), *mode));
    }
    findings
}

fn listening(setting: &str, address: SocketAddr, bound: Result<(), ErrorKind>) -> Finding {
    const CHECK: &str = "address";
    let refused = |why: &str, advice: &str| {
        Finding::problem(CHECK, format!("{setting}: cannot listen on {address}: {why}"), advice)
    };
    match bound {
        Ok(()) => Finding::ok(CHECK, format!("{setting}: {address} is free")),
        Err(kind) => match port::explain(kind) {
            Some((why, advice)) if kind == ErrorKind::AddrInUse => {
                refused(why, &format!("{advice}; if it is this server, nothing is wrong"))
            }
            Some((why, advice)) => refused(why, advice),
            None => refused(&kind.to_string(), "choose another address"),
        },
    }
}

fn access(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "access";
    let mut findings = Vec::new();
    let http = &config.http;
    if http.on_loopback {
        findings.push(Finding::ok(CHECK, "only this machine can connect"));
    } else {
        match &http.auth {
            Some(_) => findings.push(Finding::ok(CHECK, "other machines can connect, with an API key")),
            None => findings.push(Finding::warning(
                CHECK,
                format!("anyone who can reach {} can use the server: there are no API keys", config.listen),
                "set auth.keys or auth.keys_file, or restrict who can connect, for example by a firewall (SECURITY.md)",
            )),
        }
        // A server that knows its proxies lets them terminate TLS.
        if http.tls.is_none() && http.trusted_proxies.is_empty() {
            findings.push(Finding::warning(
                CHECK,
                format!("{} is plain HTTP: keys, pictures and answers can be read in transit", config.listen),
                "set server.tls_certificate and server.tls_key, or terminate TLS at a proxy and list it in server.trusted_proxies",
            ));
        }
    }
    if let Some(address) = config.operations_listen.filter(|address| !address.ip().is_loopback()) {
        findings.push(Finding::warning(
            CHECK,
            format!("anyone who can reach {address} can read metrics, /info and /status: the operations listener requires no keys"),
            "restrict who can connect, for example by a firewall, or listen on 127.0.0.1",
        ));
    }
    findings
}

fn certificate(found: Certificate, now: i64) -> Option<Finding> {
    const CHECK: &str = "certificate";
    let renew = "renew it; the server reloads the file by itself";
    let Validity { from, until } = match found {
        Certificate::Absent => return None,
        Certificate::Unreadable => {
            return Some(Finding::warning(
                CHECK,
                "cannot read how long the TLS certificate is valid",
                "check it with `openssl x509 -noout -dates -in FILE`",
            ));
        }
        Certificate::Read(validity) => validity,
    };
    let days = (until - now).div_euclid(DAY);
    Some(if until <= now {
        Finding::problem(CHECK, "the TLS certificate has expired", renew)
    } else if from > now {
        let clock = "check the clock of this machine";
        Finding::problem(CHECK, "the TLS certificate is not valid yet", clock)
    } else if days < SOON_DAYS {
        Finding::warning(CHECK, format!("the TLS certificate expires in {days} days"), renew)
    } else {
        Finding::ok(CHECK, format!("the TLS certificate is valid for {days} more days"))
    })
}

fn secret(setting: &str, path: &str, mode: u32) -> Finding {
    const CHECK: &str = "secrets";
    let bits = mode & 0o777;
    // The last octal digit is what all other users may do.
    if bits.is_multiple_of(0o10) {
        return Finding::ok(CHECK, format!("{setting}: {path} has the permissions {bits:03o}"));
    }
    Finding::warning(
        CHECK,
        format!("{setting}: every user of this machine can use {path} (permissions {bits:03o})"),
        format!("chmod o= {path}"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::tests::{only_fault, settings};
    use super::*;

    fn faults(findings: &[Finding]) -> Vec<&Finding> {
        findings.iter().filter(|finding| finding.severity != Severity::Ok).collect()
    }

    #[test]
    fn a_port_that_cannot_be_bound_is_a_problem_with_its_reason() {
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        for (kind, words) in [
            (ErrorKind::AddrInUse, "another program"),
            (ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
            (ErrorKind::AddrNotAvailable, "no such address"),
            (ErrorKind::OutOfMemory, "out of memory"),
        ] {
            let found = [listening("server.listen", address, Err(kind))];
            let fault = only_fault(&found, "address", Severity::Problem);
            assert!(fault.contains(words) && fault.contains("127.0.0.1:80"), "{fault}");
        }
    }

    #[test]
    fn a_public_address_without_keys_or_tls_is_a_warning() {
        let public = ("SERVER__LISTEN", "0.0.0.0:8080");
        let found = access(&settings(&[public]));
        let texts: Vec<&str> = faults(&found).iter().map(|one| one.text.as_str()).collect();
        assert!(
            matches!(texts[..], [keys, http] if keys.contains("no API keys") && http.contains("plain HTTP")),
            "{texts:?}"
        );
        let keys = ("AUTH__KEYS", "web:0123456789abcdef");
        let proxy = ("SERVER__TRUSTED_PROXIES", "10.0.0.0/8");
        assert_eq!(faults(&access(&settings(&[public, keys, proxy]))), [] as [&Finding; 0]);
        assert_eq!(faults(&access(&settings(&[]))), [] as [&Finding; 0]);
        let operations = ("SERVER__OPERATIONS_LISTEN", "0.0.0.0:9090");
        let fault = only_fault(&access(&settings(&[operations])), "access", Severity::Warning);
        assert!(fault.contains("0.0.0.0:9090"), "{fault}");
    }

    #[test]
    fn a_certificate_is_judged_by_its_days() {
        let severity = |from, until| {
            certificate(Certificate::Read(Validity { from, until }), 100 * DAY).unwrap().severity
        };
        assert_eq!(severity(0, 120 * DAY), Severity::Ok);
        assert_eq!(severity(0, 110 * DAY), Severity::Warning);
        assert_eq!(severity(0, 100 * DAY), Severity::Problem);
        assert_eq!(severity(101 * DAY, 500 * DAY), Severity::Problem);
        assert_eq!(certificate(Certificate::Unreadable, 0).unwrap().severity, Severity::Warning);
        assert_eq!(certificate(Certificate::Absent, 0), None);
    }

    #[test]
    fn files_that_everybody_can_read_are_a_warning() {
        assert_eq!(secret("auth.keys_file", "keys", 0o100_640).severity, Severity::Ok);
        let found = [secret("auth.keys_file", "/etc/keys", 0o100_644)];
        let fault = only_fault(&found, "secrets", Severity::Warning);
        assert!(fault.contains("644") && fault.contains("chmod o= /etc/keys"), "{fault}");
    }
}
