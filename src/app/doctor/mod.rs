//! The command `doctor`: compares the settings with the machine, and says what would keep the server from starting, make
//! it fail, or make it slower or less safe than it could be. `cli` calls [`examine`] and prints the findings.
//!
//! - `machine`: reads everything about the machine, once, into a `Machine`;
//! - `models`: where the files of each model are, and whether they are complete;
//! - `capacity`, `compute`, `exposure`: the checks, which are pure functions of the settings and a `Machine`;
//! - `certificate`: reads how long a TLS certificate is valid.
//!
//! Nothing is downloaded, loaded or changed. The server needs no connection to the hub while its models are in the cache,
//! so the hub is asked only for a model that is not.

mod capacity;
mod certificate;
mod compute;
mod exposure;
mod machine;
mod models;

use serde::Serialize;

use self::machine::Machine;
use self::models::ModelState;
use crate::config::Config;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// The server works, but slower or less safely than it could.
    Warning,
    /// The server does not start, or fails.
    Problem,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Subject of the check, such as "memory".
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub text: String,
    /// What to change, or what to know.
    pub advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, severity: Severity::Ok, text: text.into(), advice: None }
    }

    fn warning(check: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::ok(check, text).with(Severity::Warning, advice)
    }

    fn problem(check: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::ok(check, text).with(Severity::Problem, advice)
    }

    fn with(self, severity: Severity, advice: impl Into<String>) -> Self {
        Self { severity, advice: Some(advice.into()), ..self }
    }
}

/// Inspects the machine and the models, and returns all findings. The models must be in the configuration, also if they
/// are the demo models. `is_kubernetes` says whether this process runs in a pod.
pub async fn examine(config: &Config, is_kubernetes: bool) -> Vec<Finding> {
    let machine = Machine::inspect(config, is_kubernetes);
    let placement = compute::resolve(config, &machine).placement;
    let models = models::inspect(config, placement).await;
    findings(config, &machine, &models)
}

/// Returns the findings for these settings, this machine and these models.
fn findings(config: &Config, machine: &Machine, models: &[ModelState]) -> Vec<Finding> {
    let mut all: Vec<Finding> = config
        .warnings
        .iter()
        .map(|warning| Finding::warning("settings", warning, "correct or remove the variable"))
        .collect();
    all.extend(models.iter().map(models::check));
    all.extend(compute::check(config, machine));
    all.extend(capacity::check(config, machine, models));
    all.extend(exposure::check(config, machine));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags, load};

    /// The settings of a server with these variables, as in `BLIP__SECTION__KEY`.
    pub(super) fn settings(variables: &[(&str, &str)]) -> Config {
        let own = |(name, value): &(&str, &str)| (format!("BLIP__{name}"), (*value).to_owned());
        let environment: Environment = variables.iter().map(own).collect();
        load(&Flags::default(), &environment).unwrap()
    }

    /// Asserts that exactly one finding of a check is not ok; returns it as one line.
    pub(super) fn only_fault(findings: &[Finding], check: &str, severity: Severity) -> String {
        let faults: Vec<&Finding> =
            findings.iter().filter(|finding| finding.severity != Severity::Ok).collect();
        let [fault] = faults[..] else { panic!("not one fault: {findings:#?}") };
        assert_eq!((fault.check, fault.severity), (check, severity), "{fault:?}");
        format!("{} -> {}", fault.text, fault.advice.as_deref().unwrap_or_default())
    }

    #[test]
    fn a_machine_without_faults_has_only_good_findings() {
        let found = findings(&settings(&[]), &Machine::healthy(), &[ModelState::demo("demo-vqa")]);
        assert!(
            found.len() > 5 && found.iter().all(|one| one.severity == Severity::Ok),
            "{found:#?}"
        );
    }

    #[test]
    fn variables_without_effect_are_findings() {
        let mut config = settings(&[]);
        config.warnings.push("BLIP_PORT has no effect".to_owned());
        let found = findings(&config, &Machine::healthy(), &[]);
        assert!(only_fault(&found, "settings", Severity::Warning).contains("BLIP_PORT"));
    }

    #[tokio::test]
    async fn this_machine_can_be_examined() {
        let mut config = settings(&[("SERVER__LISTEN", "127.0.0.1:0"), ("COMPUTE__DEVICE", "cpu")]);
        config.models = crate::hub::ModelSource::demo();
        let found = examine(&config, false).await;
        for check in ["memory", "threads", "descriptors", "cpu", "device", "address", "shutdown"] {
            assert!(found.iter().any(|one| one.check == check), "{check}: {found:#?}");
        }
    }
}
