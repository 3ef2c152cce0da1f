#include "shared_library.hpp"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <system_error>

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#include "error.hpp"
#include "text.hpp"

namespace destseg_core {
namespace {

namespace fs = std::filesystem;

#ifdef _WIN32

std::optional<fs::path> variable(const std::string &name) {
  const std::wstring wide(name.begin(), name.end());
  std::wstring value(32768, L'\0');  // the longest that Windows keeps
  const DWORD size = GetEnvironmentVariableW(wide.c_str(), value.data(), 32768);
  if (size == 0) return std::nullopt;
  value.resize(size);
  return fs::path(value);
}

fs::path own_folder() {
  HMODULE self = nullptr;
  const auto flags =
      GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
  if (!GetModuleHandleExW(flags, reinterpret_cast<LPCWSTR>(&own_folder), &self)) return {};
  std::wstring path(32768, L'\0');
  path.resize(GetModuleFileNameW(self, path.data(), 32768));
  return fs::path(path).parent_path();
}

LibraryHandle open_file(const fs::path &path, std::string &reason) {
  const DWORD flags = path.is_absolute() ? LOAD_WITH_ALTERED_SEARCH_PATH : 0;  // its own folder, too
  HMODULE library = LoadLibraryExW(path.c_str(), nullptr, flags);
  if (library == nullptr) reason = "Windows error " + std::to_string(GetLastError());
  return reinterpret_cast<LibraryHandle>(library);
}

constexpr const char *kSubfolders[] = {"", "bin", "lib", "capi", "libs", "lib/x64",
                                       "runtimes/win-x64/native"};

#else

std::optional<fs::path> variable(const std::string &name) {
  const char *value = std::getenv(name.c_str());
  if (value == nullptr || *value == '\0') return std::nullopt;
  return fs::path(value);
}

fs::path own_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void *>(&own_folder), &info) == 0 || info.dli_fname == nullptr)
    return {};
  std::error_code code;
  const fs::path path = fs::canonical(info.dli_fname, code);
  return (code ? fs::path(info.dli_fname) : path).parent_path();
}

LibraryHandle open_file(const fs::path &path, std::string &reason) {
  LibraryHandle library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char *message = dlerror();
    reason = message != nullptr ? message : "no reason given";
  }
  return library;
}

constexpr const char *kSubfolders[] = {"", "lib", "lib64", "capi", "libs",
#if defined(__aarch64__)
                                       "runtimes/linux-arm64/native"};
#else
                                       "runtimes/linux-x64/native"};
#endif

#endif

bool begins_with(const std::string &text, const std::string &beginning) {
  return text.compare(0, beginning.size(), beginning) == 0;
}

// Files of a folder whose names begin with the stem, in the order of their names.
std::vector<fs::path> files_in(const fs::path &folder, const std::string &stem) {
  std::vector<fs::path> found;
  std::error_code code;
  for (fs::directory_iterator at(folder, code), end; !code && at != end; at.increment(code)) {
    std::error_code unread;
    if (begins_with(at->path().filename().u8string(), stem) && at->is_regular_file(unread))
      found.push_back(at->path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

class Search {
 public:
  Search(const LibraryNames &names, const Accept &accept) : names_(names), accept_(accept) {}

  LibraryHandle run() {
    if (LibraryHandle found = in_folder(own_folder())) return found;
    if (const auto named = variable(names_.variable)) {
      if (LibraryHandle found = in_named(*named)) return found;
      fail();
    }
    note(names_.variable + " (not set)");
    for (const std::string &file : names_.files)
      if (LibraryHandle found = try_file(file)) return found;
    fail();
  }

 private:
  LibraryHandle in_folder(const fs::path &folder) {
    const std::vector<fs::path> files = files_in(folder, names_.stem);
    if (files.empty()) note(folder.u8string() + " (no " + names_.stem + "*)");
    for (const fs::path &file : files)
      if (LibraryHandle found = try_file(file)) return found;
    return nullptr;
  }

  LibraryHandle in_named(const fs::path &named) {
    std::error_code code;
    const fs::path path = fs::absolute(named, code);
    if (!fs::is_directory(path, code)) {
      note(names_.variable + ", which names");
      return try_file(path);
    }
    const auto holds = [&](const char *inner) { return !files_in(path / inner, names_.stem).empty(); };
    const auto inner = std::find_if(std::begin(kSubfolders), std::end(kSubfolders), holds);
    return in_folder(inner == std::end(kSubfolders) ? path : path / *inner);
  }

  LibraryHandle try_file(const fs::path &path) {
    std::string reason;
    if (LibraryHandle library = open_file(path, reason)) {
      reason = accept_(library);
      if (reason.empty()) return library;
    }
    note(path.u8string() + " (" + reason + ")");
    return nullptr;
  }

  void note(const std::string &place) { searched_ += (searched_.empty() ? "" : "; ") + place; }

  [[noreturn]] void fail() {
    throw backend_error(names_.backend + ": no library of it can be used. Searched: " + searched_ +
                        ". " + names_.advice);
  }

  const LibraryNames &names_;
  const Accept &accept_;
  std::string searched_;
};

}  // namespace

LibraryHandle load_library(const LibraryNames &names, const Accept &accept) {
  return Search(names, accept).run();
}

void *find_function(LibraryHandle library, const char *name) {
#ifdef _WIN32
  return reinterpret_cast<void *>(GetProcAddress(reinterpret_cast<HMODULE>(library), name));
#else
  return dlsym(library, name);
#endif
}

std::string missing_function(LibraryHandle library, const std::vector<const char *> &wanted) {
  for (const char *name : wanted)
    if (find_function(library, name) == nullptr) return std::string("it has no ") + name;
  return "";
}

}  // namespace destseg_core
