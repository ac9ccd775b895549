#include "cpu.h"

#include <sched.h>
#include <sys/auxv.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>

#include "error.h"

namespace {

#if defined(__aarch64__)
bool has_feature(const std::string& name) {
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  if (name == "neon") return first >> 1 & 1;
  if (name == "dotprod") return first >> 20 & 1;
  if (name == "i8mm") return second >> 13 & 1;
  throw UserError("This program knows no CPU feature " + name + ".");
}
#else
std::set<std::string> flags() {
  std::set<std::string> found;
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (!line.starts_with("flags")) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    for (std::string word; words >> word;) found.insert(word);
    break;
  }
  return found;
}

// Linux has names of its own, or writes LLVM's with and without signs: sse4_2 is sse4.2, avx512_vnni is avx512vnni.
bool has_feature(const std::string& name) {
  static const std::set<std::string> known = flags();
  static const std::map<std::string, std::string> other{{"sse3", "pni"}, {"bmi", "bmi1"}, {"lzcnt", "abm"}};
  const auto plain = [](std::string text) {
    std::erase_if(text, [](char c) { return c == '_' || c == '.' || c == '-'; });
    return text;
  };
  const auto found = other.find(name);
  const std::string wanted = plain(found == other.end() ? name : found->second);
  return std::any_of(known.begin(), known.end(), [&](const std::string& flag) { return plain(flag) == wanted; });
}
#endif

std::string content(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  std::getline(file, text);
  return text;
}

int physical_cores() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed)) return 1;
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const std::string number = std::to_string(cpu);
    const std::string siblings = content("/sys/devices/system/cpu/cpu" + number + "/topology/thread_siblings_list");
    cores.insert(siblings.empty() ? number : siblings);
  }
  return cores.size();
}

double limit(const std::string& group) {
  std::string allowed = content(group + "/cpu.cfs_quota_us"), period = content(group + "/cpu.cfs_period_us");
  if (std::istringstream unified(content(group + "/cpu.max")); allowed.empty()) unified >> allowed >> period;
  if (allowed.empty() || allowed == "max" || allowed == "-1" || period.empty()) return INFINITY;
  return std::atof(allowed.c_str()) / std::atof(period.c_str());
}

// Cores' worth of processor time that the control groups of either version allow.
double quota() {
  double least = INFINITY;
  std::ifstream membership("/proc/self/cgroup");
  for (std::string line; std::getline(membership, line);) {
    std::istringstream parts(line);
    std::string number, controllers, group;
    std::getline(parts, number, ':');
    std::getline(parts, controllers, ':');
    std::getline(parts, group);
    if (!controllers.empty() && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    const std::string root = controllers.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
    // In a container the path may be that of the host, and the container's own group is the folder itself.
    for (std::string below = group == "/" ? "" : group;;) {
      least = std::min(least, limit(root + below));
      if (below.empty()) break;
      const size_t cut = below.rfind('/');
      below.resize(cut == std::string::npos ? 0 : cut);
    }
  }
  return least;
}

}  // namespace

bool has_features(const Json& names) {
  for (const Json& name : names.list()) {
    if (!has_feature(name.text())) return false;
  }
  return true;
}

int usable_cores() { return std::max(1, int(std::ceil(std::min<double>(physical_cores(), quota())))); }
