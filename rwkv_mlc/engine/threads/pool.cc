// The threads of CPU libraries. TVM's generated code calls rwkv_mlc_launch, which runs one function in several parts at
// the same time, and rwkv_mlc_barrier, where the parts of a launch meet.
//
// A launch is run by whoever is there: it offers a part to every worker that waits, takes those that answer at once, and
// the work is divided by their number. So a worker that has no processor holds nobody up, unless it loses it in the midst
// of a part. One that did so twice within a short time, or that does not answer, stays away for a while, and twice as long
// when it happens again: threads that wait for one another beside other programs are slower than one.
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;
using Duration = Clock::duration;

constexpr int kMost = 256;                  // threads
constexpr int kLooks = 16;                  // between two readings of the clock
constexpr microseconds kLooking{150};       // at what another thread is to change, in the midst of a launch,
constexpr microseconds kIdleLooking{400};   // and between launches, before others may run
constexpr microseconds kYielding{100};      // of letting others run, in the midst of a launch, before it sleeps,
constexpr milliseconds kIdle{5};            // and between launches
constexpr microseconds kAnswer{2};          // within which a worker that is ready answers an offer,
constexpr microseconds kAwake{100};         // and one that slept
constexpr int kRefusals = 6;                // offers without an answer in turn: the worker has no processor
constexpr microseconds kLost{200};          // a wait of that length, and of a quarter of the launch: it has lost it,
constexpr milliseconds kWorthwhile{20};     // which holds the others up for some 4, and may happen so often
constexpr milliseconds kLeastAbsence{2};    // after a loss that came sooner,
constexpr milliseconds kMostAbsence{2000};  // and after many
constexpr milliseconds kTrial{50};          // of absence, until the worker looks whether there is a processor for it
constexpr microseconds kFree{100};          // within which a thread that gives way runs again if no other wants to
constexpr int kCompanyShare = 4;            // one part in so many of its time is too much for a thread that gives way

// As in tvm/runtime/c_backend_api.h.
struct Environment {
  void* launch;
  int32_t parts;
};
using Function = int (*)(int part, Environment* environment, void* data);

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

// A number of 31 bits that others wait for. The lowest bit of what is stored says that somebody sleeps until it changes.
class Word {
 public:
  uint32_t get() const { return stored_.load(std::memory_order_acquire) >> 1; }

  void set(uint32_t value) {
    if (stored_.exchange(value << 1) & 1) stored_.notify_all();
  }

  // Makes it `to` if it is `from`; returns whether it was.
  bool change(uint32_t from, uint32_t to) {
    uint32_t found = from << 1;
    while (!stored_.compare_exchange_weak(found, to << 1)) {
      if (found >> 1 != from) return false;
    }
    if (found & 1) stored_.notify_all();
    return true;
  }

  // Returns when it is no longer `value`, or earlier.
  void sleep(uint32_t value) {
    uint32_t found = value << 1, asleep = found | 1;
    if (stored_.compare_exchange_strong(found, asleep) || found == asleep) stored_.wait(asleep);
  }

  // Returns as soon as `done` says so of its value: it looks without pause, then lets others run between two looks, then
  // sleeps. `late` is told how long that took if it was more than kLost.
  template <class Done, class Late>
  void await(Done done, Late late) {
    for (int i = 0; i < kLooks; ++i) {
      if (done(get())) return;
      relax();
    }
    const Time began = Clock::now();
    for (Duration waited{};; waited = Clock::now() - began) {
      uint32_t value = get();
      for (int i = 0; i < kLooks && !done(value); ++i, value = get()) relax();
      if (done(value)) {
        if (waited > kLost) late(Clock::now() - began);
        return;
      }
      if (waited > kLooking + kYielding) {
        sleep(value);
      } else if (waited > kLooking) {
        sched_yield();
      }
    }
  }

 private:
  std::atomic<uint32_t> stored_{0};
};

// What a worker does, in the lowest bits of its state; above them stands how many launches it was in.
enum Phase : uint32_t { kAsleep, kReady, kOffered, kAccepted, kWorking, kAway, kPhase = 7, kNext = 8 };

uint32_t with(uint32_t state, Phase phase) { return (state & ~kPhase) | phase; }

// Where the thread that makes it may run: afterwards as before. Only Linux tells and can be told.
class Processors {
 public:
#ifdef __linux__
  Processors() : known_(sched_getaffinity(0, sizeof allowed_, &allowed_) == 0) {}
  ~Processors() {
    if (changed_) sched_setaffinity(0, sizeof allowed_, &allowed_);
  }

  static int current() { return sched_getcpu(); }

  // Keeps the thread on a processor; returns whether it is there.
  bool stay_on(int processor) const {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(processor, &one);
    return set(one);
  }

  // Moves the thread to another processor if it is on this one.
  void leave(int processor) const {
    if (current() == processor) avoid(processor);
  }

  // Moves the thread to another processor than this one; returns whether no other thread wants to run there.
  bool free(int processor) const {
    if (!avoid(processor)) return false;
    const Time began = Clock::now();
    for (int i = 0; i < 4; ++i) sched_yield();
    return Clock::now() - began < kFree;
  }

 private:
  bool avoid(int processor) const {
    cpu_set_t others = allowed_;
    CPU_CLR(processor, &others);
    return CPU_COUNT(&others) && set(others);
  }

  bool set(const cpu_set_t& processors) const {
    return changed_ = known_ && sched_setaffinity(0, sizeof processors, &processors) == 0;
  }

  cpu_set_t allowed_;
  bool known_;
  mutable bool changed_ = false;
#else
  static int current() { return -1; }
  bool stay_on(int) const { return false; }
  void leave(int) const {}
  bool free(int) const { return false; }
#endif
};

Duration processor_time() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

struct Launch;

// A thread of the pool. Its state is changed by itself, but that a launch offers it a part (kReady or kAsleep to kOffered),
// gives the part (kAccepted to kWorking), or takes the offer back (kOffered to kReady, or to kAway where it slept).
struct alignas(64) Worker {
  Word state;
  std::atomic<bool> lost{false};  // others waited for it, or in vain for an answer
  std::atomic<int> refusals{0};
  Launch* launch = nullptr;  // this and the part are given with kWorking
  int part = 0;
  alignas(64) Word arrived;  // at so many barriers of the launch

  [[noreturn]] void run();

 private:
  uint32_t await_offer();
  void work(uint32_t accepted);
  void stay_away();

  Time returned_ = Clock::now();
  Duration absence_{};
};

thread_local bool in_part = false;

struct Launch {
  Launch(Function function, void* data) : function(function), data(data) {}

  Function function;
  void* data;
  Time began = Clock::now();
  Environment environment{this, 1};
  int result = 0;  // of the caller's part, with the error that it has raised
  std::atomic<bool> failed{false};  // another part has
  alignas(64) Word arrived;  // the caller, at so many barriers
  Worker* workers[kMost];    // by part, from 1 on

  void run(int part) {
    const int code = function(part, &environment, data);
    if (part == 0) {
      result = code;
    } else if (code) {
      failed = true;
    }
  }

  // Returns when all parts have come here as often as this one.
  void meet(int part) {
    const int parts = environment.parts;
    if (parts == 1) return;
    const uint32_t times = arrivals(part).get() + 1;
    arrivals(part).set(times);
    for (int other = 0; other < parts; ++other) {
      if (other == part) continue;
      auto late = [&](Duration waited) {
        if (part == 0) {
          blame(other, waited);
        } else if (other == 0) {
          blame(part, waited);  // without this worker's thread the caller may find a processor of its own
        }
      };
      arrivals(other).await([&](uint32_t arrived) { return arrived >= times; }, late);
    }
  }

  void blame(int part, Duration waited) {
    Duration before = Clock::now() - began - waited;
    if (waited > before / 3) workers[part]->lost = true;
  }

 private:
  Word& arrivals(int part) { return part == 0 ? arrived : workers[part]->arrived; }
};

// All workers of a process. It is never destroyed, as they go on until the process ends.
class Pool {
 public:
  explicit Pool(int threads = 1) : threads_(threads) {}

  void set_threads(int count) { threads_ = std::clamp(count, 1, kMost); }
  int threads() const { return threads_; }

  // Whether no launch runs and none has begun for a while.
  bool idle() const { return callers_ == 0 && Clock::now() - last_.load(std::memory_order_relaxed) > kIdle; }

  // Runs the function in at most `limit` parts, or as many as there are threads where that is 0. Callers at the same time
  // share the workers.
  void run(Launch& launch, int limit) {
    int most = limit > 0 ? std::min<int>(limit, threads_) : int(threads_);
    const int callers = ++callers_;
    most = (most + callers - 1) / callers;
    last_.store(launch.began, std::memory_order_relaxed);
    processor_.store(Processors::current(), std::memory_order_relaxed);
    if (most - 1 > started_) start(most - 1);
    const int parts = gather(launch, most);
    uint32_t working[kMost];
    for (int part = 1; part < parts; ++part) {
      Word& state = launch.workers[part]->state;
      working[part] = with(state.get(), kWorking);
      state.set(working[part]);
    }
    in_part = true;
    launch.run(0);
    in_part = false;
    for (int part = 1; part < parts; ++part) {
      launch.workers[part]->state.await([&](uint32_t state) { return state != working[part]; },
                                        [&](Duration waited) { launch.blame(part, waited); });
    }
    --callers_;
  }

  void stay_away(Duration absence);
  int processor() const { return processor_; }

 private:
  int gather(Launch& launch, int most);
  void start(int workers);
  bool accompany_caller(const Processors& processors, Time until);

  std::atomic<int> threads_, started_{0}, callers_{0};
  std::atomic<Time> last_{Time{}};          // when a launch began,
  std::atomic<int> processor_{-1};          // on which processor, -1 where the system does not tell
  std::atomic<bool> accompanied_{false};    // there is a worker in accompany_caller,
  std::atomic<bool> company_helps_{true};   // which does what it should
  std::mutex starting_;
  Worker* workers_[kMost];
};

Pool* pool = [] {
  // A process that was forked has none of the threads, and starts its own.
  pthread_atfork(nullptr, nullptr, [] { pool = new Pool(pool->threads()); });
  return new Pool;
}();

// Gives the launch the workers that answer, all but one thread of `most`; returns the number of its parts.
int Pool::gather(Launch& launch, int most) {
  int offers = 0, parts = 1;
  Worker* to[kMost];
  uint32_t offered[kMost];
  bool slept[kMost];
  microseconds patience = kAnswer;
  for (int i = 0; i < started_ && offers < most - 1; ++i) {
    const uint32_t state = workers_[i]->state.get(), phase = state & kPhase;
    if (phase != kReady && phase != kAsleep) continue;
    if (!workers_[i]->state.change(state, with(state, kOffered))) continue;
    slept[offers] = phase == kAsleep;
    if (slept[offers]) patience = kAwake;
    to[offers] = workers_[i];
    offered[offers++] = with(state, kOffered);
  }
  Time began{};
  for (int i = 0; i < offers; ++i) {
    Worker& worker = *to[i];
    for (int looks = 1; worker.state.get() == offered[i]; ++looks) {
      relax();
      if (looks % kLooks) continue;
      const Time now = Clock::now();
      if (began == Time{}) began = now;
      if (now - began > patience) break;
    }
    if (worker.state.change(offered[i], with(offered[i], slept[i] ? kAway : kReady))) {
      if (!slept[i] && ++worker.refusals >= kRefusals) worker.lost = true;
      continue;
    }
    worker.refusals = 0;
    worker.launch = &launch;
    worker.part = parts;
    launch.workers[parts++] = &worker;
  }
  return launch.environment.parts = parts;
}

void Pool::start(int workers) {
  std::lock_guard<std::mutex> lock(starting_);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the program's own threads
  try {
    while (started_ < workers) {
      Worker* worker = new Worker;
      std::thread(&Worker::run, worker).detach();
      workers_[started_] = worker;
      ++started_;
    }
  } catch (const std::system_error&) {
    // The system gives no more threads; the next launch asks again.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// Returns after the absence, or when there is a processor for the thread, or nothing to do.
void Pool::stay_away(Duration absence) {
  const Processors processors;
  const bool accompanies = !accompanied_.exchange(true);
  for (Time now = Clock::now(), end = now + absence; now < end; now = Clock::now()) {
    const Time until = std::min(end, now + kTrial);
    if (!accompanies || !accompany_caller(processors, until)) std::this_thread::sleep_until(until);
    if (idle() || processors.free(processor_)) break;
  }
  if (accompanies) accompanied_ = false;
}

// Waits on the processor of the caller, always ready to run and always giving way. A system that spreads the threads that
// are ready over the processors then leaves the caller alone with this one, where it would have put another program
// beside it: the process has the share of its two threads, in one. Returns whether that is so.
bool Pool::accompany_caller(const Processors& processors, Time until) {
  int processor = -1;
  const Time began = Clock::now();
  const Duration used = processor_time();
  for (Time now = began; now < until && !idle(); now = Clock::now()) {
    if (!company_helps_) return false;
    if (processor != processor_) {
      processor = processor_;
      if (!processors.stay_on(processor)) company_helps_ = false;
    }
    sched_yield();
  }
  // Where giving way does not help, it takes what it should give.
  if (processor_time() - used > (Clock::now() - began) / kCompanyShare) company_helps_ = false;
  return true;
}

void Worker::run() {
  in_part = true;
  for (;;) {
    const uint32_t offered = await_offer();
    arrived.set(0);
    if (state.change(offered, with(offered, kAccepted))) work(with(offered, kAccepted));
  }
}

// Returns the state with an offer in it.
uint32_t Worker::await_offer() {
  for (Time since = Clock::now();;) {
    const uint32_t now = state.get();
    switch (now & kPhase) {
      case kOffered:
        return now;
      case kAsleep:
        state.sleep(now);
        Processors().leave(pool->processor());
        since = Clock::now();
        break;
      case kAway:  // it was woken, too late for that launch
        state.set(with(now, kReady));
        break;
      default:
        if (lost) {
          stay_away();
          since = Clock::now();
        } else if (Duration waited = Clock::now() - since; waited < kIdleLooking) {
          relax();
        } else if (waited < kIdle) {
          sched_yield();
        } else {
          state.change(now, with(now, kAsleep));
        }
    }
  }
}

void Worker::work(uint32_t accepted) {
  state.await([&](uint32_t now) { return now != accepted; }, [](Duration) {});
  launch->run(part);
  state.set(with(accepted + kNext, kReady));
}

// Takes no offers for a while, unless it has worked long enough since it lost its processor before.
void Worker::stay_away() {
  const uint32_t ready = with(state.get(), kReady);
  if (!state.change(ready, with(ready, kAway))) return;  // an offer came first
  lost = false;
  refusals = 0;
  if (Clock::now() - returned_ < kWorthwhile) {
    absence_ = std::clamp<Duration>(2 * absence_, kLeastAbsence, kMostAbsence);
    pool->stay_away(absence_);
    Processors().leave(pool->processor());
  } else {
    absence_ = {};
  }
  returned_ = Clock::now();
  state.set(ready);
}

using Raise = void (*)(const char* kind, const char* message);
Raise raise_error = [](const char*, const char*) {};

}  // namespace

extern "C" {

// How many threads run a launch at most, the caller's among them.
void rwkv_mlc_set_threads(int count) { pool->set_threads(count); }

// What tells TVM of an error.
void rwkv_mlc_set_raise(Raise raise) { raise_error = raise; }

// As TVMBackendParallelLaunch, but that there may be fewer parts than were asked for.
int rwkv_mlc_launch(Function function, void* data, int limit) {
  Launch launch(function, data);
  if (in_part) {
    launch.run(0);
  } else {
    pool->run(launch, limit);
  }
  if (launch.result == 0 && launch.failed) {
    raise_error("RuntimeError", "a part of a kernel failed on another thread than the caller's");
    return -1;
  }
  return launch.result;
}

// As TVMBackendParallelBarrier.
int rwkv_mlc_barrier(int part, Environment* environment) {
  static_cast<Launch*>(environment->launch)->meet(part);
  return 0;
}

}  // extern "C"
