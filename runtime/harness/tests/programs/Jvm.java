//# Needs: program:javac
//# Scenario: go-on, restart
//# Level: normal
// A JVM: a pool, parallel streams, locks, timed waits, garbage, direct buffers, exceptions; the JIT works on it meanwhile.
import java.nio.ByteBuffer;
import java.nio.file.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;
import java.util.stream.*;

public class Jvm {
    static final AtomicLong ticks = new AtomicLong(), made = new AtomicLong();
    static volatile boolean stopping;

    static void check(boolean condition, String what) {
        if (!condition) {
            System.err.println("FAIL " + what);
            Runtime.getRuntime().halt(1);
        }
    }

    public static void main(String[] args) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(4);
        BlockingQueue<Long> queue = new ArrayBlockingQueue<>(16);
        ByteBuffer direct = ByteBuffer.allocateDirect(1 << 20);
        for (int i = 0; i < 1 << 17; i++) direct.putLong(i * 8, i * 31L);
        Thread producer = new Thread(() -> {
            try {
                for (long n = 0; !stopping; n++) queue.put(n);
            } catch (InterruptedException e) { /* the end */ }
        });
        Thread sleeper = new Thread(() -> {
            Object lock = new Object();
            while (!stopping) {
                long before = System.nanoTime();
                synchronized (lock) {
                    try { lock.wait(20); } catch (InterruptedException e) { return; }
                }
                check(System.nanoTime() - before >= 0, "nanoTime goes back");
                ticks.incrementAndGet();
            }
        });
        Thread litter = new Thread(() -> {
            Map<Long, byte[]> map = new HashMap<>();
            for (long n = 0; !stopping; n++) {
                byte[] bytes = new byte[1000];
                Arrays.fill(bytes, (byte) n);
                map.put(n % 1000, bytes);
                byte[] other = map.get((n * 7) % 1000);
                if (other != null) check(other[0] == other[999], "garbage collector");
                made.incrementAndGet();
            }
        });
        for (Thread t : List.of(producer, sleeper, litter)) t.start();
        System.out.println("ready");
        long expected = 0, tick = 0, litters = 0;
        Path stop = Paths.get(System.getenv("SW_STOP"));
        for (long n = 1;; n++) {
            for (int i = 0; i < 100; i++) check(queue.take() == expected++, "queue's order");
            List<Future<Long>> futures = new ArrayList<>();
            for (int i = 0; i < 8; i++) {
                final long seed = i;
                futures.add(pool.submit(() -> LongStream.range(0, 10000).map(x -> x * seed).sum()));
            }
            for (int i = 0; i < 8; i++) check(futures.get(i).get() == 49995000L * i, "future " + i);
            check(IntStream.range(0, 100000).parallel().mapToLong(x -> x).sum() == 4999950000L, "parallel stream");
            for (int i = 0; i < 1 << 17; i += 997) check(direct.getLong(i * 8) == i * 31L, "direct buffer");
            try {
                Object[] none = null;
                check(none.length > 0, "no exception");
            } catch (NullPointerException e) { /* by SIGSEGV, once it is compiled */ }
            while (ticks.get() == tick || made.get() == litters) Thread.sleep(1);
            tick = ticks.get();
            litters = made.get();
            System.out.println("beat " + n);
            if (Files.exists(stop)) break;
        }
        stopping = true;
        producer.interrupt();
        for (Thread t : List.of(producer, sleeper, litter)) t.join();
        pool.shutdown();
        check(pool.awaitTermination(60, TimeUnit.SECONDS), "pool");
        System.out.println("PASS");
    }
}
