#include "cores.hpp"

#include <algorithm>
#include <sstream>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

#include "error.hpp"
#include "text.hpp"

namespace destseg_core {
namespace {

std::vector<int> allowed_cores() {
  std::vector<int> cores;
#ifdef __linux__
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    for (int core = 0; core < CPU_SETSIZE; ++core)
      if (CPU_ISSET(core, &set)) cores.push_back(core);
  if (!cores.empty()) return cores;
#endif
  const unsigned count = std::max(1u, std::thread::hardware_concurrency());
  for (unsigned core = 0; core < count; ++core) cores.push_back(static_cast<int>(core));
  return cores;
}

void check_allowed(const std::vector<int> &cores, const std::string &text) {
  const std::vector<int> allowed = allowed_cores();
  std::string listed;
  for (const int core : allowed) listed += (listed.empty() ? "" : ", ") + std::to_string(core);
  for (const int core : cores)
    if (std::find(allowed.begin(), allowed.end(), core) == allowed.end())
      throw backend_error("worker_cores " + in_quotes(text) + ": this process may not run on " +
                          std::to_string(core) + ", expected some of " + listed + ".");
}

}  // namespace

std::vector<int> cores_of(const std::string &text) {
  std::vector<int> cores;
  std::istringstream parts(text + ",");
  for (std::string part; std::getline(parts, part, ',');) {
    const bool number = !part.empty() && part.size() <= 4 &&
                        part.find_first_not_of("0123456789") == std::string::npos;
    if (!number)
      throw argument_error("worker_cores " + in_quotes(text) +
                           ": expected numbers with commas between them, such as '2,3,5'.");
    cores.push_back(std::stoi(part));
  }
  check_allowed(cores, text);
  return cores;
}

}  // namespace destseg_core
