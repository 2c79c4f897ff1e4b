//! Two queue pairs of one process send each other numbered messages until `$SW_STOP` is there, on the `ibverbs` bindings: a
//! libibverbs that is linked, with headers newer than the library, and the old post interface.
use ibverbs::{CompletionQueue, MemoryRegion, QueuePair, ibv_qp_type, ibv_wc};

/// Receives are told apart from sends by this bit of wr_id.
const RECEIVE: u64 = 1 << 32;
/// Words of a message.
const WORDS: usize = 8;

struct End<'a> {
    qp: QueuePair<'a>,
    /// What is sent, then what is received.
    memory: MemoryRegion<u64>,
}

/// Waits for the completion of the send `n` and of the receive.
fn completions(cq: &CompletionQueue<'_>, n: u64) {
    let (mut sent, mut received) = (false, false);
    let mut room = [ibv_wc::default(); 4];
    while !(sent && received) {
        for wc in cq.poll(&mut room).expect("poll") {
            assert!(wc.error().is_none(), "{:?} of wr_id {}", wc.error(), wc.wr_id());
            let seen = if wc.wr_id() == RECEIVE | n { &mut received } else { &mut sent };
            assert!(wc.wr_id() & !RECEIVE == n && !*seen, "wr_id {} while {n} is under way", wc.wr_id());
            *seen = true;
        }
    }
}

fn main() {
    let devices = ibverbs::devices().expect("devices");
    let context = devices.iter().next().expect("a device").open().expect("open");
    let pd = context.alloc_pd().expect("alloc_pd");
    let cq = context.create_cq(16, 7).expect("create_cq");
    let prepared: Vec<_> = (0..2)
        .map(|_| {
            let mut builder = pd.create_qp(&cq, &cq, ibv_qp_type::IBV_QPT_RC);
            builder.set_gid_index(2).allow_remote_rw().set_max_send_wr(4).set_max_recv_wr(4);
            builder.build().expect("create_qp")
        })
        .collect();
    let to: Vec<_> = prepared.iter().rev().map(|p| p.endpoint()).collect();
    let mut ends: Vec<End<'_>> = prepared
        .into_iter()
        .zip(to)
        .map(|(qp, peer)| {
            let memory = pd.allocate(2 * WORDS).expect("reg_mr");
            End { qp: qp.handshake(peer).expect("connect"), memory }
        })
        .collect();
    let stop = std::env::var_os("SW_STOP");
    let mut n = 0;
    while !stop.as_ref().is_some_and(|s| std::path::Path::new(s).exists()) {
        for order in [[0, 1], [1, 0]] {
            let [from, to] = ends.get_disjoint_mut(order).expect("two");
            from.memory[..WORDS].fill(n);
            // SAFETY: memory lives as long as the queue pairs, and is not touched before the completions.
            unsafe {
                to.qp.post_receive(&mut to.memory, WORDS.., RECEIVE | n).expect("post_receive");
                from.qp.post_send(&mut from.memory, ..WORDS, n).expect("post_send");
            }
            completions(&cq, n);
            assert!(to.memory[WORDS..].iter().all(|&w| w == n), "message {n} is corrupt");
        }
        n += 1;
        if n % 100 == 0 {
            println!("beat {n}");
        }
    }
    println!("PASS");
}
