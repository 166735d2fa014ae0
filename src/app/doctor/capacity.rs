//! Checks of what the settings need against what the machine has: memory, CPUs, file descriptors; and the time that a
//! shutdown takes.

use super::machine::Machine;
use super::models::ModelState;
use super::{Finding, Severity};
use crate::app::compute::Compute;
use crate::app::memory_budget::{HostShare, MemoryBudget, MemoryLimit};
use crate::app::{AFTER_THE_DRAIN, descriptors};
use crate::config::Config;
use crate::task::Device;

pub(super) fn check(config: &Config, machine: &Machine, models: &[ModelState]) -> Vec<Finding> {
    let compute = super::compute::resolve(config, machine);
    let mut findings = vec![memory(config, compute.placement.device, machine.memory, models)];
    if compute.placement.device == Device::Cpu {
        findings.push(threads(compute.threads, machine));
    }
    findings.push(descriptors(config, machine.max_descriptors));
    findings.push(shutdown(config, machine));
    findings
}

fn memory(
    config: &Config,
    device: Device,
    limit: Option<MemoryLimit>,
    models: &[ModelState],
) -> Finding {
    const CHECK: &str = "memory";
    let known: u64 = models.iter().filter_map(ModelState::weight_bytes).sum();
    let share = HostShare { device, workers: config.compute.device.workers() };
    let budget = MemoryBudget::of(config, share, known);
    let unknown: Vec<&str> = models
        .iter()
        .filter(|model| model.weight_bytes().is_none())
        .map(|model| model.name.as_str())
        .collect();
    let note = if unknown.is_empty() {
        String::new()
    } else {
        format!("; not counted, because not known yet: the weights of {}", unknown.join(", "))
    };
    if let Err(reason) = budget.check(limit) {
        return Finding::problem(
            CHECK,
            reason + &note,
            "a container or service with this limit does not start",
        );
    }
    let advice = "lower the settings that bound memory (docs/tuning.md), or use fewer models";
    match limit {
        Some(MemoryLimit::Cgroup(bytes)) => Finding::ok(
            CHECK,
            format!(
                "the settings allow up to {budget}; the limit of the cgroup is {} MiB{note}",
                bytes >> 20
            ),
        ),
        Some(MemoryLimit::Machine(bytes)) if bytes < budget.total() => {
            let text = format!(
                "the settings allow up to {budget}, but this machine has {} MiB: under load the kernel may kill the server{note}",
                bytes >> 20
            );
            Finding::warning(CHECK, text, advice)
        }
        Some(MemoryLimit::Machine(bytes)) => Finding::ok(
            CHECK,
            format!(
                "the settings allow up to {budget}; this machine has {} MiB, and there is no lower limit{note}",
                bytes >> 20
            ),
        ),
        None => Finding::warning(
            CHECK,
            format!(
                "the settings allow up to {budget}; the memory of this machine cannot be read{note}"
            ),
            "compare the two by hand",
        ),
    }
}

fn threads(threads: usize, machine: &Machine) -> Finding {
    const CHECK: &str = "threads";
    let usable = machine.usable_cpus;
    if let Some(fault) = Compute::too_many_threads(threads, usable) {
        return Finding::warning(
            CHECK,
            fault,
            format!("set compute.threads to 0 or to at most {usable}, or raise the CPU quota"),
        );
    }
    let cpus = if usable == 1 { "CPU" } else { "CPUs" };
    let run = Compute::threads_run(threads);
    let found = Finding::ok(CHECK, format!("{run} the models, on {usable} usable {cpus}"));
    match machine.cores {
        Some(cores) if cores < threads => found.with(
            Severity::Ok,
            format!("these CPUs share {cores} physical cores: try --threads {cores} too, and keep what `blip-server bench` finds faster"),
        ),
        Some(_) | None => found,
    }
}

fn descriptors(config: &Config, limit: Option<u64>) -> Finding {
    const CHECK: &str = "descriptors";
    let needed = descriptors::needed(config);
    match limit {
        Some(limit) if limit < needed => Finding::warning(
            CHECK,
            descriptors::shortage(limit, needed),
            descriptors::advice(needed),
        ),
        Some(limit) => Finding::ok(
            CHECK,
            format!("up to {needed} file descriptors are needed, {limit} are allowed"),
        ),
        None => Finding::ok(
            CHECK,
            format!("up to {needed} file descriptors are needed, any number is allowed"),
        ),
    }
}

fn shutdown(config: &Config, machine: &Machine) -> Finding {
    const CHECK: &str = "shutdown";
    let drain = config.drain;
    let longest =
        drain.delay.saturating_add(drain.timeout).saturating_add(AFTER_THE_DRAIN).as_secs();
    let text = format!("a shutdown takes up to {longest} s");
    if machine.is_kubernetes && drain.delay.is_zero() {
        return Finding::warning(
            CHECK,
            format!(
                "{text}, and the server refuses new requests at once, although some may still be routed to it"
            ),
            format!(
                "in Kubernetes set server.drain_delay_ms to 5000, and terminationGracePeriodSeconds above {}",
                longest + 5
            ),
        );
    }
    Finding::ok(CHECK, text).with(
        Severity::Ok,
        format!("give it more time than that before it is killed: the default is 10 s for `docker stop` (option -t) and 30 s in Kubernetes (terminationGracePeriodSeconds, here above {longest})"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::{only_fault, settings};
    use super::*;

    fn faults(variables: &[(&str, &str)], machine: &Machine) -> Vec<Finding> {
        check(&settings(variables), machine, &[ModelState::demo("demo-caption")])
    }

    #[test]
    fn a_cgroup_limit_below_the_budget_is_a_problem_and_little_memory_a_warning() {
        let machine = Machine::healthy();
        let small = Machine { memory: Some(MemoryLimit::Cgroup(1 << 30)), ..machine.clone() };
        let fault = only_fault(&faults(&[], &small), "memory", Severity::Problem);
        assert!(
            fault.contains("limit is 1024 MiB") && fault.contains("engine.max_kv_bytes"),
            "{fault}"
        );
        let small = Machine { memory: Some(MemoryLimit::Machine(1 << 30)), ..machine.clone() };
        let fault = only_fault(&faults(&[], &small), "memory", Severity::Warning);
        assert!(fault.contains("this machine has 1024 MiB"), "{fault}");
        only_fault(&faults(&[], &Machine { memory: None, ..machine }), "memory", Severity::Warning);
    }

    #[test]
    fn weights_that_are_known_count_and_others_are_named() {
        let machine = Machine { memory: Some(MemoryLimit::Cgroup(6 << 30)), ..Machine::healthy() };
        let large = ModelState::complete("a/b", 3 << 30);
        let found = check(&settings(&[]), &machine, std::slice::from_ref(&large));
        assert!(only_fault(&found, "memory", Severity::Problem).contains("weights 3072 MiB"));
        let missing = ModelState::missing("a/b");
        let found = check(&settings(&[]), &machine, &[missing]);
        assert!(found[0].text.ends_with("the weights of a/b"), "{found:?}");
        let found = check(&settings(&[]), &machine, &["a/b", "c/d"].map(ModelState::missing));
        assert!(found[0].text.ends_with("the weights of a/b, c/d"), "{found:?}");
    }

    #[test]
    fn more_threads_than_cpus_are_a_warning_and_hyperthreads_a_hint() {
        let machine = Machine { usable_cpus: 2, ..Machine::healthy() };
        let fault = only_fault(
            &faults(&[("COMPUTE__THREADS", "5")], &machine),
            "threads",
            Severity::Warning,
        );
        assert!(fault.contains("5 threads") && fault.contains("allow 2 CPUs"), "{fault}");
        let machine = Machine { usable_cpus: 8, cores: Some(4), ..Machine::healthy() };
        let found = faults(&[("COMPUTE__THREADS", "8")], &machine);
        let threads = found.iter().find(|finding| finding.check == "threads").unwrap();
        assert_eq!(threads.severity, Severity::Ok);
        assert!(threads.advice.as_deref().unwrap().contains("--threads 4"), "{threads:?}");
    }

    #[test]
    fn too_few_descriptors_are_a_warning() {
        let machine = Machine { max_descriptors: Some(300), ..Machine::healthy() };
        let fault = only_fault(&faults(&[], &machine), "descriptors", Severity::Warning);
        assert!(fault.contains("300") && fault.contains("LimitNOFILE"), "{fault}");
        let unlimited = Machine { max_descriptors: None, ..machine.clone() };
        assert!(faults(&[], &unlimited).iter().all(|finding| finding.severity == Severity::Ok));
        let few = [("SERVER__MAX_CONNECTIONS", "20")];
        assert!(faults(&few, &machine).iter().all(|finding| finding.severity == Severity::Ok));
    }

    #[test]
    fn in_kubernetes_a_drain_needs_a_delay() {
        let pod = Machine { is_kubernetes: true, ..Machine::healthy() };
        let fault = only_fault(&faults(&[], &pod), "shutdown", Severity::Warning);
        assert!(fault.contains("server.drain_delay_ms"), "{fault}");
        let found = faults(&[("SERVER__DRAIN_DELAY_MS", "5000")], &pod);
        let shutdown = found.iter().find(|finding| finding.check == "shutdown").unwrap();
        assert_eq!(shutdown.severity, Severity::Ok);
        assert!(shutdown.text.contains("30 s"), "{shutdown:?}");
    }
}
