// Launches of parts that check one another at every barrier, from several callers at once, with parts that are late and
// pauses of every length between launches. Usage: program THREADS CALLERS LAUNCHES [fork]. Prints the least and the most
// parts of a launch, how many launches had several, and how many errors there were; ends with 1 after one.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

struct Environment {
  void* launch;
  int32_t parts;
};

extern "C" {
int rwkv_mlc_launch(int (*function)(int, Environment*, void*), void* data, int limit);
int rwkv_mlc_barrier(int part, Environment* environment);
void rwkv_mlc_set_threads(int count);
}

namespace {

constexpr int kMost = 64;
std::atomic<int> errors{0};

struct Job {
  uint32_t seed;
  int barriers;
  int late_part;  // -1 for none
  bool nested;
  std::atomic<int> runs{0};
  int parts = 0;
  uint64_t values[2][kMost * 8];  // a line for each part, in turn
  std::atomic<int> passed{0};
};

uint64_t value_of(const Job& job, int round, int part) { return job.seed * 1000003ull + round * 257ull + part; }

int alone(int part, Environment* environment, void* data) {
  if (part != 0 || environment->parts != 1 || rwkv_mlc_barrier(part, environment)) ++errors;
  ++*static_cast<std::atomic<int>*>(data);
  return 0;
}

int check(int part, Environment* environment, void* data) {
  Job& job = *static_cast<Job*>(data);
  const int parts = environment->parts;
  ++job.runs;
  if (part == 0) job.parts = parts;
  for (int round = 0; round < job.barriers; ++round) {
    uint64_t* values = job.values[round % 2];
    values[part * 8] = value_of(job, round, part);
    if (part == job.late_part && round == job.barriers / 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    rwkv_mlc_barrier(part, environment);
    for (int other = 0; other < parts; ++other) errors += values[other * 8] != value_of(job, round, other);
  }
  if (job.nested) {
    std::atomic<int> runs{0};
    errors += rwkv_mlc_launch(alone, &runs, 0) != 0 || runs != 1;
  }
  return part == 1 && job.seed % 97 == 0 ? 3 : 0;
}

struct Counts {
  int least = kMost, most = 0, shared = 0;

  void add(const Counts& other) {
    least = std::min(least, other.least);
    most = std::max(most, other.most);
    shared += other.shared;
  }

  void print() const { std::printf("%d %d %d %d\n", least, most, shared, errors.load()); }
};

void call(int caller, int launches, Counts* counts) {
  std::mt19937 random(caller);
  for (int i = 0; i < launches; ++i) {
    Job job;
    job.seed = random();
    job.barriers = random() % 9;
    job.late_part = random() % 2000 == 0 ? random() % 3 : -1;
    job.nested = random() % 20 == 0;
    const int limit = random() % 4 == 0 ? 1 + random() % 3 : 0;
    const int result = rwkv_mlc_launch(check, &job, limit);
    errors += job.runs != job.parts || (limit && job.parts > limit);
    errors += (result != 0) != (job.parts > 1 && job.seed % 97 == 0);
    counts->add({job.parts, job.parts, job.parts > 1});
    const int pause = random() % 200;
    if (pause == 0) std::this_thread::sleep_for(std::chrono::milliseconds(8));
    if (pause < 10) std::this_thread::sleep_for(std::chrono::microseconds(pause * 20));
  }
}

Counts call_at_once(int callers, int launches) {
  std::vector<std::thread> threads;
  std::vector<Counts> counts(callers);
  for (int i = 0; i < callers; ++i) threads.emplace_back(call, i, launches, &counts[i]);
  for (std::thread& thread : threads) thread.join();
  Counts all;
  for (const Counts& each : counts) all.add(each);
  return all;
}

}  // namespace

int main(int count, char** arguments) {
  rwkv_mlc_set_threads(std::atoi(arguments[1]));
  const int callers = std::atoi(arguments[2]), launches = std::atoi(arguments[3]);
  call_at_once(callers, launches).print();
  if (count > 4) {
    std::fflush(stdout);
    if (fork() == 0) {
      Counts own;
      call(0, launches, &own);
      own.print();
      std::fflush(stdout);
      _exit(errors != 0);
    }
    int status = 0;
    wait(&status);
    errors += status != 0;
  }
  std::fflush(stdout);
  return errors != 0;
}
