#include "cores.hpp"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#else
#include <sys/utsname.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif

#include "error.hpp"
#include "text.hpp"

namespace destseg_core {

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

namespace {

void check_different(std::vector<int> cores, const std::string &text) {
  std::sort(cores.begin(), cores.end());
  if (std::adjacent_find(cores.begin(), cores.end()) != cores.end())
    throw backend_error("worker_cores " + in_quotes(text) +
                        ": one is named twice, expected each at most once. Two threads on one core "
                        "wait for each other.");
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

std::string trimmed(const std::string &text) {
  const std::size_t begin = text.find_first_not_of(" \t"), end = text.find_last_not_of(" \t\r\n");
  return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
}

#ifdef _WIN32
std::string makers_name() {
  constexpr wchar_t kPlace[] = L"HARDWARE\\DESCRIPTION\\System\\CentralProcessor\\0";
  wchar_t wide[256] = {};
  DWORD bytes = sizeof wide;
  if (RegGetValueW(HKEY_LOCAL_MACHINE, kPlace, L"ProcessorNameString", RRF_RT_REG_SZ, nullptr, wide,
                   &bytes) != ERROR_SUCCESS)
    return "";
  return trimmed(std::filesystem::path(wide).u8string());
}

std::string architecture_name() {
  const char *const found = std::getenv("PROCESSOR_ARCHITECTURE");
  return found == nullptr ? "" : found;
}
#else
std::string makers_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0) return trimmed(line.substr(line.find(':') + 1));
  return "";
}

std::string architecture_name() {
  utsname found{};
  return uname(&found) == 0 ? found.machine : "";
}
#endif

}  // namespace

std::string cpu_name() {
  const std::string name = makers_name();
  return name.empty() ? architecture_name() : name;
}

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
  check_different(cores, text);
  check_allowed(cores, text);
  return cores;
}

}  // namespace destseg_core
