//! Settings of keys, limits, proxies, TLS and the second listener: what is taken, what is refused, what is never shown.

use blip_server::config::{Config, ConfigError, Environment, Flags, load};

use super::{A, B};

fn with(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let variable = |(name, value): &(&str, &str)| (format!("BLIP__{name}"), (*value).to_owned());
    load(&Flags::default(), &variables.iter().map(variable).collect::<Environment>())
}

fn from_file(text: &str) -> Result<Config, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blip.toml");
    std::fs::write(&path, text).unwrap();
    load(&Flags { config: Some(path), ..Flags::default() }, &Environment::new())
}

/// The error as people see it, with its causes.
fn refused(result: Result<Config, ConfigError>) -> String {
    format!("{0} {0:?}", result.expect_err("refused"))
}

#[test]
fn by_default_there_are_no_keys_no_limits_no_tls_and_one_listener() {
    let config = with(&[]).unwrap();
    assert_eq!((config.http.auth, config.http.rate_limit, config.http.tls), (None, None, None));
    assert_eq!((config.operations_listen, config.http.operations_listener), (None, false));
    assert!(config.http.trusted_proxies.is_empty());
}

#[test]
fn keys_come_from_the_environment_and_from_a_file_and_are_shown_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    std::fs::write(&path, format!("# clients\nb:{B}\n")).unwrap();
    let list = format!("a:{A}, another-secret-of-a");
    let config =
        with(&[("AUTH__KEYS", &list), ("AUTH__KEYS_FILE", path.to_str().unwrap())]).unwrap();
    let shown = format!("{}{config:?}", config.to_toml());
    for secret in [A, B, "another-secret-of-a"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(config.to_toml().contains("keys = [\"(hidden)\", \"(hidden)\"]"), "{shown}");
    let auth = config.http.auth.unwrap();
    assert_eq!(auth.keys.iter().map(|key| key.id().len()).collect::<Vec<_>>(), [1, 12]);
    assert_eq!(auth.keys_file.unwrap().keys[0].id(), "b");
    // What is shown is no setting to start with.
    assert!(refused(from_file(&config_with_hidden_keys())).contains("auth.keys"));
}

fn config_with_hidden_keys() -> String {
    with(&[("AUTH__KEYS", A)]).unwrap().to_toml()
}

#[test]
fn a_wrong_key_is_named_by_its_setting_and_never_shown() {
    let secrets = ["hush", "hush hush hush hush hush", "a b:hush-hush-hush-hush"];
    for secret in secrets {
        let error = refused(with(&[("AUTH__KEYS", secret)]));
        assert!(error.contains("auth.keys") && error.contains("BLIP__AUTH__KEYS"), "{error}");
        assert!(error.contains("(hidden)") && !error.contains("hush"), "{error}");
    }
    let twice = refused(with(&[("AUTH__KEYS", &format!("a:{A},b:{A}"))]));
    assert!(twice.contains("auth.keys") && !twice.contains(A), "{twice}");
    for text in [
        "[auth]\nkeys = \"hush-hush-hush-hush\"\n",
        "[auth]\nkeys = [7777777777777777]\n",
        "[auth]\nkeys = [\"hush-hush-hush-hush\n",
        "[hub]\ntoken = \"hush-hush-hush-hush\n",
    ] {
        let error = refused(from_file(text));
        assert!(!error.contains("hush") && !error.contains("7777"), "{error}");
    }
}

#[test]
fn a_file_of_keys_that_cannot_be_used_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    let load = || refused(with(&[("AUTH__KEYS_FILE", path.to_str().unwrap())]));
    assert!(load().contains("auth.keys_file"), "{}", load());
    for (content, says) in [("# none\n", "no key"), ("a:hush\n", "line 1"), ("", "no key")] {
        std::fs::write(&path, content).unwrap();
        let error = load();
        assert!(error.contains("auth.keys_file") && error.contains(says), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }
    std::fs::write(&path, format!("b:{A}\n")).unwrap();
    let both = [("AUTH__KEYS_FILE", path.to_str().unwrap()), ("AUTH__KEYS", A)];
    assert!(refused(with(&both)).contains("auth.keys"), "one secret with two owners");
}

#[test]
fn limits_proxies_and_the_second_listener_are_checked() {
    let limit = with(&[("RATE_LIMIT__REQUESTS_PER_SECOND", "5")]).unwrap().http.rate_limit.unwrap();
    assert_eq!((limit.requests_per_second, limit.burst), (5, 20));
    let proxies = [("SERVER__TRUSTED_PROXIES", "10.0.0.0/8, 192.0.2.7,fd00::/8")];
    let proxies = with(&proxies).unwrap().http.trusted_proxies;
    let proxies: Vec<String> = proxies.iter().map(ToString::to_string).collect();
    assert_eq!(proxies, ["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"]);
    let config = with(&[("SERVER__OPERATIONS_LISTEN", "127.0.0.1:9090")]).unwrap();
    assert_eq!(config.operations_listen, Some("127.0.0.1:9090".parse().unwrap()));
    assert!(config.http.operations_listener);

    let cases: [(&[(&str, &str)], &str); 5] = [
        (
            &[("RATE_LIMIT__REQUESTS_PER_SECOND", "5"), ("RATE_LIMIT__BURST", "0")],
            "rate_limit.burst = 0",
        ),
        (&[("SERVER__TRUSTED_PROXIES", "10.0.0.0/33")], "server.trusted_proxies"),
        (&[("SERVER__TRUSTED_PROXIES", "proxy.example")], "server.trusted_proxies"),
        (&[("SERVER__OPERATIONS_LISTEN", "9090")], "server.operations_listen"),
        (&[("SERVER__OPERATIONS_LISTEN", "127.0.0.1:8080")], "server.operations_listen"),
    ];
    for (variables, says) in cases {
        let error = refused(with(variables));
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn certificate_and_key_are_read_at_the_start_and_the_wrong_one_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let [first, second] =
        [(); 2].map(|()| rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap());
    let certificate = write("certificate.pem", &first.cert.pem());
    let key = write("key.pem", &first.signing_key.serialize_pem());
    let other_key = write("other.pem", &second.signing_key.serialize_pem());
    let nonsense = write("nonsense.pem", "nonsense");
    let tls = |certificate: &str, key: &str| {
        with(&[("SERVER__TLS_CERTIFICATE", certificate), ("SERVER__TLS_KEY", key)])
    };
    assert!(tls(&certificate, &key).unwrap().http.tls.is_some());
    let cases = [
        (&*certificate, "", "server.tls_key"),
        ("", &*key, "server.tls_certificate"),
        ("/no/such/file", &key, "server.tls_certificate"),
        (&certificate, "/no/such/file", "server.tls_key"),
        (&nonsense, &key, "server.tls_certificate"),
        (&certificate, &nonsense, "server.tls_key"),
        (&key, &key, "server.tls_certificate"),
        (&certificate, &other_key, "server.tls_key"),
    ];
    for (certificate, key, setting) in cases {
        let error = refused(tls(certificate, key));
        assert!(error.contains(&format!("{setting} = ")), "{certificate} {key}: {error}");
        assert!(!error.contains("PRIVATE KEY"), "{error}");
    }
}
