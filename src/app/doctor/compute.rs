//! Checks of what runs the models: the GPU, the instruction set of the CPU, the number format.

use std::num::NonZeroUsize;

use super::machine::Machine;
use super::{Finding, Severity};
use crate::app::compute::Compute;
use crate::config::{ComputeSettings, Config, DeviceChoice, DtypeChoice};
use crate::task::{Device, Dtype};

pub(super) fn check(config: &Config, machine: &Machine) -> Vec<Finding> {
    let compute = resolve(config, machine);
    let mut findings = vec![device(config, machine)];
    if compute.placement.device == Device::Cpu {
        findings.push(instructions(compute, machine));
    }
    findings.push(number_format(compute));
    findings
}

/// Returns the compute settings with every `auto` replaced, as the server would on this machine.
pub(super) fn resolve(config: &Config, machine: &Machine) -> Compute {
    let settings = config.compute;
    let device = match (settings.device, &machine.gpus) {
        (DeviceChoice::Auto, Some(Ok(gpus))) => DeviceChoice::Cuda(*gpus),
        (DeviceChoice::Auto, Some(Err(_)) | None) => DeviceChoice::Cpu,
        (chosen @ (DeviceChoice::Cpu | DeviceChoice::Cuda(_)), _) => chosen,
    };
    Compute::resolve(ComputeSettings {
        device,
        cpu_isa: settings.cpu_isa.or(Some(machine.level)),
        threads: settings.threads.or(NonZeroUsize::new(machine.usable_cpus)),
        ..settings
    })
}

fn device(config: &Config, machine: &Machine) -> Finding {
    const CHECK: &str = "device";
    let is_chosen = matches!(config.compute.device, DeviceChoice::Cuda(_));
    match &machine.gpus {
        None => Finding::ok(CHECK, "the CPU runs the models"),
        Some(Ok(_)) if config.compute.dtype == DtypeChoice::Int8 => Finding::problem(
            CHECK,
            "int8 runs on CPUs only",
            "set compute.device to cpu, or choose another compute.dtype",
        ),
        Some(Ok(gpus)) => Finding::warning(
            CHECK,
            format!(
                "cuda:{gpus} can be used; the GPU kernels of this version were tested in a simulation, never on a GPU"
            ),
            "compare some answers with those of --device cpu before you rely on them",
        ),
        Some(Err(reason)) if is_chosen => Finding::problem(
            CHECK,
            format!("the GPU cannot be used: {reason}"),
            "fix this, or set compute.device to auto or cpu",
        ),
        Some(Err(reason)) if reason.is_without_gpu() => Finding::ok(
            CHECK,
            format!("the CPU runs the models, because no GPU can be used: {reason}"),
        ),
        Some(Err(reason)) => Finding::warning(
            CHECK,
            format!("the CPU runs the models, because the GPU cannot be used: {reason}"),
            "fix this, or set compute.device to cpu",
        ),
    }
}

fn instructions(compute: Compute, machine: &Machine) -> Finding {
    const CHECK: &str = "cpu";
    let (level, best) = (compute.level, machine.level);
    let text = format!("the CPU kernels use {} instructions", level.name());
    if machine.is_level_refused {
        return Finding::warning(
            CHECK,
            format!(
                "{text}; the CPU has AMX, but the operating system does not let this process use it"
            ),
            "in a container, allow arch_prctl in the seccomp profile",
        );
    }
    if level < best {
        return Finding::warning(
            CHECK,
            format!("{text}, but this CPU has {}", best.name()),
            "set compute.cpu_isa to auto, unless you compare instruction sets",
        );
    }
    if level == crate::kernels::isa::Level::Portable && !machine.is_portable_best {
        return Finding::warning(
            CHECK,
            format!("{text}: this CPU has no AVX2, so inference takes several times as long"),
            "use a CPU with AVX2 or newer; in a virtual machine, pass the host's CPU features through",
        );
    }
    Finding::ok(CHECK, text)
}

fn number_format(compute: Compute) -> Finding {
    const CHECK: &str = "dtype";
    let dtype = compute.placement.dtype;
    let text = format!("weights and activations are {}", dtype.name());
    let is_cpu = compute.placement.device == Device::Cpu;
    match dtype {
        Dtype::F16 if is_cpu => Finding::warning(
            CHECK,
            format!("{text}, which is slow on a CPU"),
            "set compute.dtype to auto",
        ),
        Dtype::Bf16 => Finding::ok(CHECK, text).with(
            Severity::Ok,
            "answers can differ in small ways from those in f32; compare with --dtype f32",
        ),
        Dtype::F32 | Dtype::F16 | Dtype::Int8 => Finding::ok(CHECK, text),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{only_fault, settings};
    use super::*;
    use crate::config::Gpus;
    use crate::gpu::cuda::CudaUnavailable;
    use crate::kernels::isa::Level;

    fn findings(variables: &[(&str, &str)], machine: &Machine) -> Vec<Finding> {
        check(&settings(variables), machine)
    }

    #[test]
    fn a_gpu_that_was_chosen_must_work_and_one_that_was_found_should() {
        let broken = Err(CudaUnavailable::CublasLtMissing);
        let machine = Machine { gpus: Some(broken), ..Machine::healthy() };
        let fault = only_fault(
            &findings(&[("COMPUTE__DEVICE", "cuda")], &machine),
            "device",
            Severity::Problem,
        );
        assert!(fault.contains("libcublasLt"), "{fault}");
        let fault = only_fault(&findings(&[], &machine), "device", Severity::Warning);
        assert!(fault.contains("libcublasLt") && fault.contains("the CPU runs"), "{fault}");
        let machine = Machine { gpus: Some(Ok(Gpus::one(0).unwrap())), ..Machine::healthy() };
        only_fault(&findings(&[], &machine), "device", Severity::Warning);
        let int8 = [("COMPUTE__DEVICE", "cuda"), ("COMPUTE__DTYPE", "int8")];
        only_fault(&findings(&int8, &machine), "device", Severity::Problem);
    }

    #[test]
    fn instructions_that_are_not_used_are_a_warning() {
        let refused = Machine { is_level_refused: true, ..Machine::healthy() };
        let fault = only_fault(&findings(&[], &refused), "cpu", Severity::Warning);
        assert!(fault.contains("arch_prctl"), "{fault}");
        let old = Machine { is_portable_best: false, ..Machine::healthy() };
        let fault = only_fault(&findings(&[], &old), "cpu", Severity::Warning);
        assert!(fault.contains("AVX2"), "{fault}");
        if let Some(&best) = Level::ALL.last().filter(|&&best| best != Level::Portable) {
            let machine = Machine { level: best, is_portable_best: false, ..Machine::healthy() };
            let fault = only_fault(
                &findings(&[("COMPUTE__CPU_ISA", "portable"), ("COMPUTE__DTYPE", "f32")], &machine),
                "cpu",
                Severity::Warning,
            );
            assert!(fault.contains(best.name()), "{fault}");
        }
    }

    #[test]
    fn f16_which_is_slow_on_a_cpu_is_a_warning_and_bf16_is_the_default() {
        let found = findings(&[("COMPUTE__DTYPE", "f16")], &Machine::healthy());
        assert!(only_fault(&found, "dtype", Severity::Warning).contains("f16"));
        let on_cpu = findings(&[("COMPUTE__DEVICE", "cpu")], &Machine::healthy());
        assert!(on_cpu.iter().any(|finding| finding.text.contains("are bf16")), "{on_cpu:?}");
    }
}
