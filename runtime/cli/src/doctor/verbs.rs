//! Which verbs devices are here (sysfs, Documentation/ABI/stable/sysfs-class-infiniband), and may they be used?
use super::{Finding, library};
use slackwater_protocol::names;
use std::{
    env,
    fs::{self, OpenOptions},
    path::Path,
};

const CLASS: &str = "/sys/class/infiniband";
const UVERBS: &str = "/sys/class/infiniband_verbs";
/// RLIMIT_MEMLOCK below this lets next to no memory be registered.
const LOCKED: u64 = 64 << 20;

pub(super) fn verbs() -> Vec<Finding> {
    let mut devices = entries(CLASS);
    if devices.is_empty() {
        return vec![Finding::note(
            "verbs",
            "no RDMA device here: programs and images that use verbs need one (soft-RoCE: rdma link add rxe0 type rxe netdev IFACE)",
        )];
    }
    devices.sort();
    let offered = library::devices();
    let mut findings: Vec<Finding> = devices.iter().map(|device| look(device, &offered)).collect();
    findings.push(plugin());
    findings.extend(locked());
    findings
}

fn entries(dir: &str) -> Vec<String> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().into()
}

fn look(device: &str, offered: &Result<Vec<String>, String>) -> Finding {
    let mut ports = entries(&format!("{CLASS}/{device}/ports"));
    ports.sort();
    let state = |port: &String| {
        let port_dir = format!("{CLASS}/{device}/ports/{port}");
        // "4: ACTIVE"
        let state = read(&format!("{port_dir}/state"));
        let state = state.split_once(": ").map_or(state.as_str(), |(_, name)| name).to_owned();
        format!("port {port} {state} ({})", read(&format!("{port_dir}/link_layer")))
    };
    let text = format!("{device}: {}", ports.iter().map(state).collect::<Vec<_>>().join(", "));
    let Some(node) = node(device) else {
        return Finding::problem("verbs", format!("{text}: has no uverbs device; load the kernel module ib_uverbs"));
    };
    if let Err(error) = OpenOptions::new().read(true).write(true).open(&node) {
        return Finding::problem(
            "verbs",
            format!("{text}: {node} cannot be opened ({error}); as root: chmod 666 {node}"),
        );
    }
    match offered {
        Err(error) => {
            let text = format!(
                "{text}: no program can use it without libibverbs ({error}); apt install libibverbs1 ibverbs-providers"
            );
            return Finding::problem("verbs", text);
        }
        Ok(names) if !names.iter().any(|name| name == device) => {
            let text = format!("{text}: libibverbs has no provider for it; apt install ibverbs-providers");
            return Finding::problem("verbs", text);
        }
        Ok(_) => {}
    }
    // Only a device in hardware has a parent that a driver is bound to.
    let driver = fs::read_link(format!("{CLASS}/{device}/device/driver"));
    match driver.ok().as_deref().and_then(Path::file_name) {
        Some(driver) => {
            Finding::note("verbs", format!("{text}: driver {}; tested is soft-RoCE (rdma_rxe) alone", driver.display()))
        }
        None if text.contains("ACTIVE") => Finding::ok("verbs", text),
        None => Finding::note("verbs", format!("{text}: no port is active; bring its network interface up")),
    }
}

/// The /dev node whose device this is.
fn node(device: &str) -> Option<String> {
    let node = entries(UVERBS).into_iter().find(|node| read(&format!("{UVERBS}/{node}/ibdev")) == device)?;
    Some(format!("/dev/infiniband/{node}"))
}

fn plugin() -> Finding {
    let library = env::current_exe().map_err(Into::into).and_then(|own| crate::launch::library(&own));
    match library.map(|library| library.with_file_name(names::VERBS_PLUGIN)) {
        Ok(plugin) if plugin.is_file() => Finding::ok("verbs", format!("{}: goes along by itself", plugin.display())),
        Ok(plugin) => Finding::problem(
            "verbs",
            format!("{} is missing: programs that use verbs cannot be checkpointed without it", plugin.display()),
        ),
        Err(error) => Finding::problem("verbs", format!("{error:#}")),
    }
}

fn locked() -> Option<Finding> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current?;
    (limit < LOCKED && !rustix::process::geteuid().is_root()).then(|| {
        Finding::note(
            "verbs",
            format!("only {} may be locked (ulimit -l), so little memory can be registered; raise memlock in /etc/security/limits.conf", indicatif::HumanBytes(limit)),
        )
    })
}
