//! `cargo xtask vm`: the tests on real sockets, on other kernels than this machine's.

mod built;
mod cpio;
mod kernel;
mod output;
mod plan;
mod qemu;
mod report;
mod root;
pub(crate) mod systemd;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use self::{
    built::Built,
    kernel::{Kernel, NEWEST},
    output::Output,
    plan::Plan,
    qemu::Machine,
    report::Row,
    root::Own,
};
use crate::{
    at_once, packages,
    process::step,
    setup::{self, Ready},
    target::Target,
    workspace::Workspace,
};

/// The kernels of docs/compatibility.md.
const MATRIX: [(Target, &str); 7] = [
    (Target::X86_64, "5.10"),
    (Target::X86_64, "6.1"),
    (Target::X86_64, "6.12"),
    (Target::X86_64, "6.18"),
    (Target::X86_64, NEWEST),
    (Target::Aarch64, "6.1"),
    (Target::Aarch64, NEWEST),
];

/// Those that CI boots: an old one, a new one, and the other processor.
const CI: [(Target, &str); 3] = [MATRIX[0], MATRIX[4], MATRIX[6]];

/// How many machines run at once. Each has 2 GiB of memory; its tests take a third of a CPU.
const AT_ONCE: usize = 3;

/// How long one machine may run, and one of `--ci`: that takes two to five minutes on a quiet machine.
const LIMIT: Duration = Duration::from_hours(1);
const CI_LIMIT: Duration = Duration::from_mins(20);

/// Run the tests on Debian's kernels, in virtual machines
///
/// Boots a kernel under QEMU's software emulation, which needs no privileges and no hardware, with the static
/// binary, the tests and the programs that they start, and runs those of TCP, TLS and discovery in every
/// attach mode. Kernels and programs are downloaded through apt, which verifies them, and kept in
/// target/machines with the consoles of all runs; `rm -r target/machines` makes the next run download the
/// newest ones.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask vm                                # the newest kernel, this machine's processor\n  \
    cargo xtask vm --kernel 5.10 opens:: closes:: # only tests whose name contains one of them\n  \
    cargo xtask vm --append preempt=full          # with a parameter of the kernel\n  \
    cargo xtask vm --kernel 6.1 --arch aarch64\n  \
    cargo xtask vm --all                          # every kernel, and the table of docs/compatibility.md")]
pub(crate) struct Args {
    /// The series of the kernel, such as 6.1, or "newest"
    #[arg(long, value_name = "VERSION", default_value = NEWEST)]
    kernel: String,
    /// The processor
    #[arg(long, value_parser = ["x86_64", "aarch64"])]
    arch: Option<String>,
    /// Every kernel of docs/compatibility.md, whose table is then written anew
    #[arg(long, conflicts_with_all = ["kernel", "arch", "append", "filters"])]
    all: bool,
    /// Write the kernel's rows into the table of docs/compatibility.md
    #[arg(long, conflicts_with_all = ["all", "ci", "append", "filters"])]
    table: bool,
    /// A few of the tests on an old and a new kernel and on aarch64, some minutes each
    #[arg(long, conflicts_with_all = ["kernel", "arch", "append", "filters", "all"])]
    ci: bool,
    /// More parameters for the kernel
    #[arg(long, value_name = "PARAMETERS", default_value = "", hide_default_value = true)]
    append: String,
    /// Only tests whose name contains one of these
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let workspace = Workspace::locate()?;
    let ready = setup::ensure(&workspace)?;
    if args.ci {
        return of_ci(&workspace, &ready);
    }
    let machines = if args.all {
        MATRIX.to_vec()
    } else {
        let arch = args.arch.as_deref().unwrap_or(ready.toolchain.bpf_target_arch());
        let target = Target::of_arch(arch)
            .with_context(|| format!("there is no virtual machine for {arch}: name one with --arch"))?;
        vec![(target, args.kernel.as_str())]
    };
    let plan = |kernel: &str| Plan::new(kernel, &args.filters);
    let rows = run(&workspace, &ready, &machines, &plan, &args.append, LIMIT)?;
    if args.all || args.table {
        report::write(&workspace.root.join("docs/compatibility.md"), &rows, args.all)?;
    }
    judge(&rows)
}

/// A few of the tests on a few of the kernels, within minutes.
fn of_ci(workspace: &Workspace, ready: &Ready) -> Result<()> {
    judge(&run(workspace, ready, &CI, &Plan::of_ci, "", CI_LIMIT)?)
}

/// Shows the table, and fails if anything in it has failed.
fn judge(rows: &[Row]) -> Result<()> {
    println!("{}", report::table(rows));
    let failures: Vec<_> = rows.iter().flat_map(Row::failures).collect();
    ensure!(failures.is_empty(), "failed in virtual machines:\n  {}", failures.join("\n  "));
    Ok(())
}

/// A machine, and what it runs.
struct Prepared {
    /// Processor and kernel.
    name: String,
    release: String,
    plan: Plan,
    machine: Machine,
}

/// What the machines of one processor need of others.
struct Fetched {
    target: Target,
    /// The archive with Debian's programs.
    programs: PathBuf,
    kernels: Vec<Kernel>,
}

/// Downloads everything at once, before anything is built.
fn fetch(ready: &Ready, machines: &[(Target, &str)], folder: &Path) -> Result<Vec<Fetched>> {
    packages::ensure_for_vm()?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let targets = [Target::X86_64, Target::Aarch64].into_iter();
    let wanted = targets.filter(|target| machines.iter().any(|(of, _)| of == target));
    wanted
        .map(|target| {
            target.ensure(&ready.toolchain)?;
            let versions = machines.iter().filter(|(of, _)| *of == target);
            Ok(Fetched {
                target,
                programs: root::programs(target, folder)?,
                kernels: versions
                    .map(|(_, version)| Kernel::fetch(version, target, folder))
                    .collect::<Result<_>>()?,
            })
        })
        .collect()
}

/// Boots every machine, a few at a time: their tests mostly wait.
fn run(
    workspace: &Workspace,
    ready: &Ready,
    machines: &[(Target, &str)],
    plan: &dyn Fn(&str) -> Plan,
    parameters: &str,
    limit: Duration,
) -> Result<Vec<Row>> {
    let folder = workspace.target.join("machines");
    let fetched = fetch(ready, machines, &folder)?;
    let mut prepared: Vec<Prepared> = Vec::new();
    for Fetched { target, programs, kernels } in fetched {
        let built = Built::make(workspace, ready, target)?;
        for kernel in kernels {
            let name = format!("{}-{}", target.arch(), kernel.release);
            if prepared.iter().any(|other| other.name == name) {
                step(format!("vm: there is one more name for {name}: it runs once"));
                continue;
            }
            let plan = plan(&kernel.release);
            let machine = Machine {
                target,
                kernel: kernel.image,
                parameters: parameters.to_owned(),
                initramfs: folder.join(format!("{name}.initramfs")),
                log: folder.join(format!("{name}.log")),
                limit,
            };
            assemble(workspace, &built, &plan, &machine, &[&kernel.modules, &programs])?;
            prepared.push(Prepared { name, release: kernel.release, plan, machine });
        }
    }
    Ok(at_once::work(&prepared, AT_ONCE, Prepared::boot)?.concat())
}

/// Writes the root of a machine.
fn assemble(
    workspace: &Workspace,
    built: &Built,
    plan: &Plan,
    machine: &Machine,
    kept: &[&Path],
) -> Result<()> {
    let package = workspace.root.join("handshake-user");
    let own = Own {
        files: &[&built.binary, &built.netns, &built.discover, &built.daemon, &built.example]
            .map(Clone::clone),
        trees: &[built.peers.clone(), package.join("tests/programs")],
        folders: &[workspace.target.join(machine.target.triple()).join("tmp")],
        plan: &plan.script(built, &package),
    };
    root::assemble(&own, kept, &machine.initramfs)
}

impl Prepared {
    /// Runs the machine to its end. One that does not end by itself is reported, and what it said counts.
    fn boot(&self) -> Result<Vec<Row>> {
        let Self { name, release, plan, machine } = self;
        step(format!("vm: {name}: booting; its console: {}", machine.log.display()));
        let mut output = Output::default();
        let ended = machine.run(|line| {
            if line.starts_with("@@") || (line.starts_with("test ") && line.contains("FAILED")) {
                step(format!("vm: {name}: {line}"));
            }
            output.read(line);
        });
        if let Err(err) = ended {
            step(format!("vm: {name}: {err:#}"));
        }
        fs::remove_file(&machine.initramfs).context("removing the initramfs")?;
        Ok(plan.rows(release, machine.target, &output))
    }
}
