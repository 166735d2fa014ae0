//! The command `doctor`: prints what `app::doctor` finds, as text for people or as JSON. The exit code is 1 if a finding
//! would keep a server with the same settings from starting, or make it fail; warnings do not change it.

use serde::Serialize;

use super::error::CommandError;
use super::serve;
use crate::app::doctor::{self, Finding, Severity};
use crate::config::{Config, Environment};
use crate::telemetry::logging::LoggingSettings;

/// The form of `--json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// The severity of the worst finding.
    result: Severity,
    findings: &'a [Finding],
}

/// `load` reads the settings. If they are wrong, that is the only finding, and the exit code is that of the error.
pub(super) fn run(
    json: bool,
    load: impl FnOnce() -> Result<Config, CommandError>,
    environment: &Environment,
) -> Result<(), CommandError> {
    let config = match load().and_then(serve::with_models) {
        Ok(config) => config,
        Err(error) => {
            if json {
                super::print(&to_json(&[of_settings(&error)])?)?;
            }
            return Err(error);
        }
    };
    // Kubernetes sets this variable in every pod.
    let is_kubernetes = environment.contains_key("KUBERNETES_SERVICE_HOST");
    let findings = super::runtime()?.block_on(doctor::examine(&config, is_kubernetes));
    let text = if json { to_json(&findings)? } else { to_text(&findings) };
    super::print(&text)?;
    match findings.iter().filter(|finding| finding.severity == Severity::Problem).count() {
        0 => Ok(()),
        1 => Err(CommandError::Negative("1 problem found".to_owned())),
        problems => Err(CommandError::Negative(format!("{problems} problems found"))),
    }
}

/// The finding that the settings cannot be used. Standard error has the same text.
fn of_settings(error: &CommandError) -> Finding {
    Finding {
        check: "settings",
        severity: Severity::Problem,
        text: error.with_causes(),
        advice: None,
    }
}

/// Logs only errors unless the settings say otherwise: the findings contain the warnings.
pub(super) fn silently(config: &mut Config) {
    if config.log.filter == LoggingSettings::default().filter {
        "error".clone_into(&mut config.log.filter);
    }
}

fn to_json(findings: &[Finding]) -> Result<String, CommandError> {
    let result = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok);
    let report = Report { result, findings };
    let text = serde_json::to_string_pretty(&report);
    text.map(|text| text + "\n")
        .map_err(|error| CommandError::failed("cannot write the findings as JSON", error))
}

/// Returns one line per finding, and a second one if there is advice.
fn to_text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    let lines = findings.iter().map(|finding| {
        let Finding { check, severity, text, advice } = finding;
        let severity = match severity {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Problem => "problem",
        };
        let line = format!("{severity:<7}  {check:<width$}  {text}\n");
        let indent = " ".repeat(7 + 2 + width + 2);
        let advice = advice.iter().map(|advice| format!("{indent}-> {advice}\n"));
        line + &advice.collect::<String>()
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> [Finding; 2] {
        let finding = |check, severity, advice: Option<&str>| Finding {
            check,
            severity,
            text: format!("about {check}"),
            advice: advice.map(str::to_owned),
        };
        [finding("cpu", Severity::Ok, None), finding("memory", Severity::Problem, Some("lower it"))]
    }

    #[test]
    fn text_has_columns_and_advice_below() {
        let expected = "ok       cpu     about cpu\n\
                        problem  memory  about memory\n                 -> lower it\n";
        assert_eq!(to_text(&findings()), expected);
    }

    #[test]
    fn json_has_the_worst_severity_and_all_findings() {
        let json: serde_json::Value = serde_json::from_str(&to_json(&findings()).unwrap()).unwrap();
        assert_eq!(json["result"], "problem");
        assert_eq!(json["findings"][1]["advice"], "lower it");
        assert_eq!(json["findings"][0]["advice"], serde_json::Value::Null);
    }
}
