//! Every symbol of libibverbs, by version: wrapped, refused, or passed through with the reason.
//!
//! A wrapped or refused one is exported by a jump in the same assembly as its `.symver`, so that code generation cannot part
//! the two. What is not exported here resolves to libibverbs itself. A test holds this table against the dynamic symbols
//! of the libibverbs that is installed, and `docs/verbs-coverage.md` is made of it.
//!
//! # Safety
//! The jump keeps all argument registers; the function behind it has the C signature of its name.
use crate::{ah, attr, channel, cm, context, cq, device, mr, pd, qp, refuse, srq};

/// What becomes of a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// We define it, over shadow objects.
    Wrapped,
    /// We define it, and it fails with EOPNOTSUPP and one message.
    Refused,
    /// Not ours, for this reason.
    Passed(&'static str),
}

/// One symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// Name.
    pub name: &'static str,
    /// Version.
    pub version: &'static str,
    /// What becomes of it.
    pub how: How,
}

macro_rules! exports {
    // librdmacm's, of which we only keep count.
    (@cm $($name:literal => $f:path;)*) => { $(exports!(@one $name "RDMACM_1.0" $f);)* };
    (wrapped { $($name:literal $version:literal => $f:path;)* } refused { $($rname:literal $rversion:literal => $rf:path;)* }
     passed { $($pname:literal $pversion:literal: $why:expr;)* }) => {
        $(exports!(@one $name $version $f);)*
        $(exports!(@one $rname $rversion $rf);)*
        /// The table.
        pub const EXPORTS: &[Export] = &[
            $(Export { name: $name, version: $version, how: How::Wrapped },)*
            $(Export { name: $rname, version: $rversion, how: How::Refused },)*
            $(Export { name: $pname, version: $pversion, how: How::Passed($why) },)*
        ];
        /// Our definition of a symbol; None: not ours.
        pub(crate) fn definition(name: &[u8], version: &[u8]) -> Option<usize> {
            let all: &[(&str, &str, *const ())] =
                &[$(($name, $version, $f as *const ()),)* $(($rname, $rversion, $rf as *const ()),)*];
            all.iter().find(|d| d.0.as_bytes() == name && d.1.as_bytes() == version).map(|d| d.2 as usize)
        }
    };
    (@one $name:literal $version:literal $f:path) => {
        #[cfg(not(feature = "no-exports"))]
        core::arch::global_asm!(
            concat!(".pushsection .text.slackwater_ib_", $name, ",\"ax\",@progbits"),
            concat!(".globl slackwater_ib_", $name),
            concat!(".type slackwater_ib_", $name, ", @function"),
            concat!("slackwater_ib_", $name, ": jmp {f}"),
            concat!(".size slackwater_ib_", $name, ", . - slackwater_ib_", $name),
            concat!(".symver slackwater_ib_", $name, ", ", $name, "@@", $version, ", remove"),
            ".popsection",
            f = sym $f
        );
    };
}

const OLD: &str = "the ABI of 2007, with other structs: no program of today binds to it; a device opened so is refused at \
                   the checkpoint";
const PURE: &str = "pure: names or converts values";
const RANGE: &str = "madvise(2) on the program's own memory";
const PROVIDER: &str = "for providers: real objects, which live in the driver's namespace";

exports! {@cm
    "rdma_create_event_channel" => cm::create_event_channel;
    "rdma_destroy_event_channel" => cm::destroy_event_channel;
    "rdma_create_id" => cm::create_id;
    "rdma_destroy_id" => cm::destroy_id;
    "rdma_create_ep" => cm::create_ep;
    "rdma_destroy_ep" => cm::destroy_ep;
}

exports! {
wrapped {
    "_ibv_query_gid_ex" "IBVERBS_1.11" => context::query_gid_ex;
    "_ibv_query_gid_table" "IBVERBS_1.11" => context::query_gid_table;
    "ibv_ack_async_event" "IBVERBS_1.1" => context::ack_async_event;
    "ibv_ack_cq_events" "IBVERBS_1.1" => channel::ack_cq_events;
    "ibv_alloc_pd" "IBVERBS_1.1" => pd::alloc_pd;
    "ibv_close_device" "IBVERBS_1.1" => context::close_device;
    "ibv_create_ah" "IBVERBS_1.1" => ah::create_ah;
    "ibv_create_ah_from_wc" "IBVERBS_1.1" => ah::create_ah_from_wc;
    "ibv_create_comp_channel" "IBVERBS_1.0" => channel::create_comp_channel;
    "ibv_create_cq" "IBVERBS_1.1" => cq::create_cq;
    "ibv_create_qp" "IBVERBS_1.1" => qp::create_qp;
    "ibv_create_srq" "IBVERBS_1.1" => srq::create_srq;
    "ibv_dealloc_pd" "IBVERBS_1.1" => pd::dealloc_pd;
    "ibv_dereg_mr" "IBVERBS_1.1" => mr::dereg_mr;
    "ibv_destroy_ah" "IBVERBS_1.1" => ah::destroy_ah;
    "ibv_destroy_comp_channel" "IBVERBS_1.0" => channel::destroy_comp_channel;
    "ibv_destroy_cq" "IBVERBS_1.1" => cq::destroy_cq;
    "ibv_destroy_qp" "IBVERBS_1.1" => qp::destroy_qp;
    "ibv_destroy_srq" "IBVERBS_1.1" => srq::destroy_srq;
    "ibv_fork_init" "IBVERBS_1.1" => context::fork_init;
    "ibv_free_device_list" "IBVERBS_1.1" => device::free_device_list;
    "ibv_get_async_event" "IBVERBS_1.1" => context::get_async_event;
    "ibv_get_cq_event" "IBVERBS_1.1" => channel::get_cq_event;
    "ibv_get_device_guid" "IBVERBS_1.1" => device::get_device_guid;
    "ibv_get_device_index" "IBVERBS_1.9" => device::get_device_index;
    "ibv_get_device_list" "IBVERBS_1.1" => device::get_device_list;
    "ibv_get_pkey_index" "IBVERBS_1.5" => context::get_pkey_index;
    "ibv_init_ah_from_wc" "IBVERBS_1.1" => ah::init_ah_from_wc;
    "ibv_is_fork_initialized" "IBVERBS_1.13" => context::is_fork_initialized;
    "ibv_modify_qp" "IBVERBS_1.1" => attr::modify_qp;
    "ibv_modify_srq" "IBVERBS_1.1" => srq::modify_srq;
    "ibv_open_device" "IBVERBS_1.1" => context::open_device;
    "ibv_qp_to_qp_ex" "IBVERBS_1.6" => qp::qp_to_qp_ex;
    "ibv_query_device" "IBVERBS_1.1" => context::query_device;
    "ibv_query_gid" "IBVERBS_1.1" => context::query_gid;
    "ibv_query_gid_type" "IBVERBS_PRIVATE_34" => context::query_gid_type;
    "ibv_query_pkey" "IBVERBS_1.1" => context::query_pkey;
    "ibv_query_port" "IBVERBS_1.1" => context::query_port;
    "ibv_query_qp" "IBVERBS_1.1" => attr::query_qp;
    "ibv_query_qp_data_in_order" "IBVERBS_1.14" => attr::query_qp_data_in_order;
    "ibv_query_srq" "IBVERBS_1.1" => srq::query_srq;
    "ibv_reg_mr" "IBVERBS_1.1" => mr::reg_mr;
    "ibv_reg_mr_iova" "IBVERBS_1.7" => mr::reg_mr_iova;
    "ibv_reg_mr_iova2" "IBVERBS_1.8" => mr::reg_mr_iova2;
    "ibv_rereg_mr" "IBVERBS_1.1" => mr::rereg_mr;
    "ibv_resize_cq" "IBVERBS_1.1" => cq::resize_cq;
    "ibv_resolve_eth_l2_from_gid" "IBVERBS_1.1" => ah::resolve_eth_l2;
}
refused {
    "ibv_attach_mcast" "IBVERBS_1.1" => refuse::attach_mcast;
    "ibv_detach_mcast" "IBVERBS_1.1" => refuse::detach_mcast;
    "ibv_import_device" "IBVERBS_1.10" => refuse::import_device;
    "ibv_import_dm" "IBVERBS_1.13" => refuse::import_dm;
    "ibv_import_mr" "IBVERBS_1.10" => refuse::import_mr;
    "ibv_import_pd" "IBVERBS_1.10" => refuse::import_pd;
    "ibv_query_ece" "IBVERBS_1.10" => refuse::ece;
    "ibv_reg_dmabuf_mr" "IBVERBS_1.12" => refuse::reg_dmabuf_mr;
    "ibv_set_ece" "IBVERBS_1.10" => refuse::ece;
    "ibv_unimport_dm" "IBVERBS_1.13" => refuse::unimport;
    "ibv_unimport_mr" "IBVERBS_1.10" => refuse::unimport;
    "ibv_unimport_pd" "IBVERBS_1.10" => refuse::unimport;
}
passed {
    "__ioctl_final_num_attrs" "IBVERBS_PRIVATE_34": PROVIDER;
    "__verbs_log" "IBVERBS_PRIVATE_34": PROVIDER;
    "_verbs_init_and_alloc_context" "IBVERBS_PRIVATE_34": PROVIDER;
    "execute_ioctl" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_ack_async_event" "IBVERBS_1.0": OLD;
    "ibv_ack_cq_events" "IBVERBS_1.0": OLD;
    "ibv_alloc_pd" "IBVERBS_1.0": OLD;
    "ibv_attach_mcast" "IBVERBS_1.0": OLD;
    "ibv_close_device" "IBVERBS_1.0": OLD;
    "ibv_cmd_advise_mr" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_alloc_dm" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_alloc_mw" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_alloc_pd" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_attach_mcast" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_close_xrcd" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_create_ah" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_create_counters" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_create_cq" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_create_cq_ex" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_create_flow" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_create_flow_action_esp" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_create_qp" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_create_qp_ex" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_create_qp_ex2" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_create_rwq_ind_table" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_create_srq" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_create_srq_ex" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_create_wq" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_dealloc_mw" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_dealloc_pd" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_dereg_mr" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_destroy_ah" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_destroy_counters" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_destroy_cq" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_destroy_flow" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_destroy_flow_action" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_destroy_qp" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_destroy_rwq_ind_table" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_destroy_srq" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_destroy_wq" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_detach_mcast" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_free_dm" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_get_context" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_modify_cq" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_modify_flow_action_esp" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_modify_qp" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_modify_qp_ex" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_modify_srq" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_modify_wq" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_open_qp" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_open_xrcd" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_poll_cq" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_post_recv" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_post_send" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_post_srq_recv" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_query_context" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_query_device_any" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_query_mr" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_query_port" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_query_qp" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_query_srq" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_read_counters" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_reg_dm_mr" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_reg_dmabuf_mr" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_reg_mr" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_req_notify_cq" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_rereg_mr" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_cmd_resize_cq" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_copy_ah_attr_from_kern" "IBVERBS_1.1": PURE;
    "ibv_copy_path_rec_from_kern" "IBVERBS_1.0": PURE;
    "ibv_copy_path_rec_to_kern" "IBVERBS_1.0": PURE;
    "ibv_copy_qp_attr_from_kern" "IBVERBS_1.0": PURE;
    "ibv_create_ah" "IBVERBS_1.0": OLD;
    "ibv_create_cq" "IBVERBS_1.0": OLD;
    "ibv_create_qp" "IBVERBS_1.0": OLD;
    "ibv_create_srq" "IBVERBS_1.0": OLD;
    "ibv_dealloc_pd" "IBVERBS_1.0": OLD;
    "ibv_dereg_mr" "IBVERBS_1.0": OLD;
    "ibv_destroy_ah" "IBVERBS_1.0": OLD;
    "ibv_destroy_cq" "IBVERBS_1.0": OLD;
    "ibv_destroy_qp" "IBVERBS_1.0": OLD;
    "ibv_destroy_srq" "IBVERBS_1.0": OLD;
    "ibv_detach_mcast" "IBVERBS_1.0": OLD;
    "ibv_dofork_range" "IBVERBS_1.1": RANGE;
    "ibv_dontfork_range" "IBVERBS_1.1": RANGE;
    "ibv_event_type_str" "IBVERBS_1.1": PURE;
    "ibv_free_device_list" "IBVERBS_1.0": OLD;
    "ibv_get_async_event" "IBVERBS_1.0": OLD;
    "ibv_get_cq_event" "IBVERBS_1.0": OLD;
    "ibv_get_device_guid" "IBVERBS_1.0": OLD;
    "ibv_get_device_list" "IBVERBS_1.0": OLD;
    "ibv_get_device_name" "IBVERBS_1.0": OLD;
    "ibv_get_device_name" "IBVERBS_1.1": PURE;
    "ibv_get_sysfs_path" "IBVERBS_1.0": PURE;
    "ibv_modify_qp" "IBVERBS_1.0": OLD;
    "ibv_modify_srq" "IBVERBS_1.0": OLD;
    "ibv_node_type_str" "IBVERBS_1.1": PURE;
    "ibv_open_device" "IBVERBS_1.0": OLD;
    "ibv_port_state_str" "IBVERBS_1.1": PURE;
    "ibv_query_device" "IBVERBS_1.0": OLD;
    "ibv_query_gid" "IBVERBS_1.0": OLD;
    "ibv_query_pkey" "IBVERBS_1.0": OLD;
    "ibv_query_port" "IBVERBS_1.0": OLD;
    "ibv_query_qp" "IBVERBS_1.0": OLD;
    "ibv_query_srq" "IBVERBS_1.0": OLD;
    "ibv_rate_to_mbps" "IBVERBS_1.1": PURE;
    "ibv_rate_to_mult" "IBVERBS_1.0": PURE;
    "ibv_read_ibdev_sysfs_file" "IBVERBS_PRIVATE_34": PROVIDER;
    "ibv_read_sysfs_file" "IBVERBS_1.0": PURE;
    "ibv_reg_mr" "IBVERBS_1.0": OLD;
    "ibv_register_driver" "IBVERBS_1.1": PROVIDER;
    "ibv_resize_cq" "IBVERBS_1.0": OLD;
    "ibv_wc_status_str" "IBVERBS_1.1": PURE;
    "mbps_to_ibv_rate" "IBVERBS_1.1": PURE;
    "mult_to_ibv_rate" "IBVERBS_1.0": PURE;
    "verbs_init_cq" "IBVERBS_PRIVATE_34": PROVIDER;
    "verbs_open_device" "IBVERBS_PRIVATE_34": PROVIDER;
    "verbs_register_driver_34" "IBVERBS_PRIVATE_34": PROVIDER;
    "verbs_set_ops" "IBVERBS_PRIVATE_34": PROVIDER;
    "verbs_uninit_context" "IBVERBS_PRIVATE_34": PROVIDER;
}
}
