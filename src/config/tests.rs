//! Tests of reading and checking settings.

use super::*;
use crate::inventory::WhenUnavailable;

fn with(variables: &[(&str, &str)]) -> Result<Settings, InvalidSettings> {
    let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
    Sources::of(None, variables)?.settings()
}

#[test]
fn the_documented_defaults_are_valid() {
    let settings = with(&[]).unwrap();
    assert_eq!(settings.namespace, "floodgate");
    assert_eq!(settings.worker.max_batch, 512);
}

#[test]
fn the_environment_wins() {
    let settings = with(&[
        ("FLOODGATE_WORKER__MAX_BATCH", "7"),
        ("FLOODGATE_INVENTORY__WHEN_UNAVAILABLE", "wait"),
        ("FLOODGATE_NAMESPACE", "7"),
        ("FLOODGATE_AMQP_URL", ""),
        ("FLOODGATE_SERVICE_HOST", "10.0.0.1"),
    ])
    .unwrap();
    assert_eq!(settings.worker.max_batch, 7);
    assert_eq!(settings.inventory.when_unavailable, WhenUnavailable::Wait);
    assert_eq!(settings.namespace, "7");
}

#[test]
fn a_value_out_of_range_is_named_with_what_is_accepted() {
    let error = with(&[("FLOODGATE_WORKER__MAX_BATCH", "0")]).unwrap_err();
    assert_eq!(error.to_string(), "settings: worker.max_batch is 0; accepted: 1 to 1000");
    for (variable, setting, least) in [
        ("INTENT__MAX_AGE_S", "intent.max_age_s", 1),
        ("INVENTORY__KEEP_AFTER_CLOSE_S", "inventory.keep_after_close_s", 0),
    ] {
        let error = with(&[(&format!("FLOODGATE_{variable}"), "4294967296")]).unwrap_err();
        let expected =
            format!("settings: {setting} is 4294967296; accepted: {least} to 4294967295");
        assert_eq!(error.to_string(), expected);
    }
    assert!(with(&[("FLOODGATE_NAMESPACE", "a.b")]).is_err());
    let error = with(&[("FLOODGATE_WORKER__MAXBATCH", "5")]).unwrap_err().to_string();
    assert!(error.contains("did you mean FLOODGATE_WORKER__MAX_BATCH?"), "{error}");
    let error = with(&[("FLOODGATE_WORKER__MAX_BATCH", "many")]).unwrap_err().to_string();
    assert_eq!(error, "settings: FLOODGATE_WORKER__MAX_BATCH: the value is not a whole number");
}

#[test]
fn text_stays_text_and_other_types_are_refused_without_their_values() {
    let settings = with(&[
        ("FLOODGATE_API__JWT_SECRET", "01234567890123456789012345678901"),
        ("FLOODGATE_NAMESPACE", "0123"),
        ("FLOODGATE_API__JWT_AUDIENCE", "1.50"),
        ("FLOODGATE_API__JWT_ISSUER", "true"),
    ])
    .unwrap();
    assert_eq!(settings.api.jwt_secret.expose_secret(), "01234567890123456789012345678901");
    assert_eq!(settings.namespace, "0123");
    assert_eq!((&*settings.api.jwt_audience, &*settings.api.jwt_issuer), ("1.50", "true"));
}

#[test]
fn a_misspelt_variable_is_named_with_the_one_that_was_meant() {
    for (given, meant) in [
        ("FLOODGATE_API_JWT_SECRET", "FLOODGATE_API__JWT_SECRET"),
        ("FLOODGATE_AMPQ_URL", "FLOODGATE_AMQP_URL"),
        ("FLOODGATE_WORKERS__MAX_BATCH", "FLOODGATE_WORKER__MAX_BATCH"),
        ("FLOODGATE_DATABASE__URL", "FLOODGATE_DATABASE_URL"),
    ] {
        let error = with(&[(given, "hush")]).unwrap_err().to_string();
        assert!(error.contains(given) && error.contains(&format!("mean {meant}?")), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }
    let error = with(&[("FLOODGATE_ZZZ", "1")]).unwrap_err().to_string();
    assert!(error.contains("`floodgate settings` prints all"), "{error}");
    for of_kubernetes in [
        "FLOODGATE_SERVICE_HOST",
        "FLOODGATE_SERVICE_PORT",
        "FLOODGATE_API_SERVICE_PORT_HTTP",
        "FLOODGATE_PORT",
        "FLOODGATE_API_PORT_8080_TCP_ADDR",
    ] {
        with(&[(of_kubernetes, "tcp://10.0.0.1:8080")]).unwrap();
    }
}

#[test]
fn a_value_can_stand_in_a_file_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "a secret of more than 32 bytes ...\n").unwrap();
    let file = path.to_str().unwrap();
    let settings = with(&[("FLOODGATE_API__JWT_SECRET_FILE", file)]).unwrap();
    assert_eq!(settings.api.jwt_secret.expose_secret(), "a secret of more than 32 bytes ...");
    let both = [("FLOODGATE_API__JWT_SECRET_FILE", file), ("FLOODGATE_API__JWT_SECRET", "s")];
    assert!(with(&both).unwrap_err().to_string().contains("one of them"));
    let missing = with(&[("FLOODGATE_AMQP_URL_FILE", "/nowhere")]).unwrap_err().to_string();
    assert!(missing.contains("FLOODGATE_AMQP_URL_FILE=/nowhere: can't be read"), "{missing}");
}

#[test]
fn a_file_that_is_wrong_is_told_without_its_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.toml");
    for (text, wanted) in [
        ("amqp_url = \"hush", "line 1 is not TOML"),
        ("namespace = \"x\"\nredis_url = hush", "line 2 is not TOML"),
        ("[api]\njwt_secret = 4815162342", "api.jwt_secret is of type integer; accepted: a text"),
        ("redis_url = [\"hush\"]", "redis_url is of type array"),
        ("ampq_url = \"hush\"", "did you mean amqp_url?"),
        ("[log]\nformat = \"xml\"", "log.format: unknown variant `xml`"),
        ("[broker]\nprefetch = 70000", "broker.prefetch"),
    ] {
        std::fs::write(&path, text).unwrap();
        let result = Sources::of(Some(&path), std::iter::empty());
        let error = result.and_then(|sources| sources.settings()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
        assert!(error.contains("settings.toml"), "{error}");
        assert!(!error.contains("hush") && !error.contains("4815162342"), "{error}");
    }
}

#[test]
fn secrets_are_hidden_and_nothing_else_is() {
    let names: Vec<String> = Sources::of(None, std::iter::empty())
        .unwrap()
        .shown()
        .into_iter()
        .map(|s| s.name)
        .collect();
    for name in names {
        let variable = format!("FLOODGATE_{}", name.replace('.', "__").to_uppercase());
        let variables = [(variable.into(), "a-marked-text".into())].into_iter();
        // Numbers and the like can't be secrets.
        let Ok(sources) = Sources::of(None, variables) else { continue };
        let Ok(settings) = sources.settings() else { continue };
        let is_secret = !format!("{settings:?}").contains("a-marked-text");
        let shown = sources.shown().into_iter().find(|shown| shown.name == name).unwrap();
        assert_eq!(shown.value == "(hidden)", is_secret, "{name} = {}", shown.value);
    }
}

#[test]
fn missing_servers_are_all_named() {
    let settings = with(&[("FLOODGATE_REDIS_URL", "redis://:hush@host/")]).unwrap();
    let error = settings.require(&[Server::Amqp, Server::Redis, Server::Database]).unwrap_err();
    assert!(error.to_string().contains("FLOODGATE_AMQP_URL, FLOODGATE_DATABASE_URL"));
    assert!(!format!("{settings:?}").contains("hush"), "secrets are never shown");
}
