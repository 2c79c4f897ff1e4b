//! Two queue pairs of one process send each other numbered messages until `$SW_STOP` is there, on the `sideway` bindings: extended
//! completion queues, the `ibv_wr_*` interface, and a libibverbs that is found by dlopen(3).
use sideway::ibverbs::AccessFlags;
use sideway::ibverbs::address::{AddressHandleAttribute, Gid};
use sideway::ibverbs::completion::{ExtendedCompletionQueue, GenericCompletionQueue, WorkCompletionStatus};
use sideway::ibverbs::device::{DeviceInfo as _, DeviceList};
use sideway::ibverbs::device_context::Mtu;
use sideway::ibverbs::memory_region::MemoryRegion;
use sideway::ibverbs::queue_pair::{
    ExtendedQueuePair, PostSendGuard as _, QueuePair as _, QueuePairAttribute, QueuePairState,
    SetScatterGatherEntry as _, WorkRequestFlags,
};
use std::sync::Arc;

const RECEIVE: u64 = 1 << 32;
const PORT: u8 = 1;
const GID_INDEX: u8 = 2;

struct End {
    qp: ExtendedQueuePair,
    cq: Arc<ExtendedCompletionQueue>,
    mr: Arc<MemoryRegion>,
    memory: Box<[u64; 16]>,
}

impl End {
    fn receive(&mut self, n: u64) {
        let (key, at) = (self.mr.lkey(), &raw mut self.memory[8]);
        let mut guard = self.qp.start_post_recv();
        let request = guard.construct_wr(RECEIVE + n);
        unsafe { request.setup_sge(key, at as u64, 64) };
        guard.post().expect("post_recv");
    }

    fn send(&mut self, n: u64) {
        self.memory[..8].fill(n);
        let (key, at) = (self.mr.lkey(), self.memory.as_ptr());
        let mut guard = self.qp.start_post_send();
        let request = guard.construct_wr(n, WorkRequestFlags::Signaled).setup_send();
        unsafe { request.setup_sge(key, at as u64, 64) };
        guard.post().expect("post_send");
    }

    /// Waits for one completion.
    fn completion(&self, wanted: u64) {
        loop {
            if let Ok(mut poller) = self.cq.start_poll() {
                let found = poller.next().expect("a completion");
                assert_eq!(found.status(), WorkCompletionStatus::Success as u32, "wr_id {}", found.wr_id());
                assert_eq!(found.wr_id(), wanted);
                return;
            }
        }
    }

    fn connect(&mut self, peer: u32, gid: &Gid) {
        let mut to = QueuePairAttribute::new();
        to.setup_state(QueuePairState::Init).setup_pkey_index(0).setup_port(PORT);
        to.setup_access_flags(AccessFlags::LocalWrite | AccessFlags::RemoteWrite);
        self.qp.modify(&to).expect("INIT");
        let mut to = QueuePairAttribute::new();
        to.setup_state(QueuePairState::ReadyToReceive)
            .setup_path_mtu(Mtu::Mtu1024)
            .setup_dest_qp_num(peer)
            .setup_rq_psn(7);
        to.setup_max_dest_read_atomic(1).setup_min_rnr_timer(12);
        let mut av = AddressHandleAttribute::new();
        av.setup_dest_lid(0).setup_port(PORT).setup_service_level(0).setup_grh_src_gid_index(GID_INDEX);
        av.setup_grh_dest_gid(gid).setup_grh_hop_limit(4);
        to.setup_address_vector(&av);
        self.qp.modify(&to).expect("RTR");
        let mut to = QueuePairAttribute::new();
        to.setup_state(QueuePairState::ReadyToSend)
            .setup_sq_psn(7)
            .setup_timeout(14)
            .setup_retry_cnt(7)
            .setup_rnr_retry(7);
        to.setup_max_read_atomic(1);
        self.qp.modify(&to).expect("RTS");
    }
}

fn main() {
    let devices = DeviceList::new().expect("devices");
    let device = devices.iter().next().expect("a device");
    println!("on {}", device.name());
    let context = device.open().expect("open");
    let pd = context.alloc_pd().expect("alloc_pd");
    let gid = context.query_gid(PORT, GID_INDEX.into()).expect("query_gid");
    let mut ends: Vec<End> = (0..2)
        .map(|_| {
            let memory = Box::new([0; 16]);
            let access = AccessFlags::LocalWrite | AccessFlags::RemoteWrite;
            let mr = unsafe { pd.reg_mr(memory.as_ptr() as _, 128, access) }.expect("reg_mr");
            let cq = context.create_cq_builder().setup_cqe(16).build_ex().expect("cq");
            let handle = GenericCompletionQueue::from(Arc::clone(&cq));
            let mut builder = pd.create_qp_builder();
            let builder = builder.setup_send_cq(handle.clone()).setup_recv_cq(handle);
            let qp = builder.setup_max_send_wr(4).setup_max_recv_wr(4).build_ex().expect("qp");
            End { qp, cq, mr, memory }
        })
        .collect();
    let numbers = [ends[0].qp.qp_number(), ends[1].qp.qp_number()];
    ends[0].connect(numbers[1], &gid);
    ends[1].connect(numbers[0], &gid);
    let stop = std::env::var_os("SW_STOP");
    let mut n = 0;
    while !stop.as_ref().is_some_and(|s| std::path::Path::new(s).exists()) {
        for order in [[0, 1], [1, 0]] {
            let [from, to] = ends.get_disjoint_mut(order).expect("two");
            to.receive(n);
            from.send(n);
            from.completion(n);
            to.completion(RECEIVE + n);
            assert!(to.memory[8..].iter().all(|&w| w == n), "message {n} is corrupt");
        }
        n += 1;
        if n % 100 == 0 {
            println!("beat {n}");
        }
    }
    println!("PASS");
}
