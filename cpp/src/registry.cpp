#include "registry.hpp"

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include <cstdint>
#include <new>
#include <shared_mutex>
#include <unordered_map>
#include <utility>

#include "error.hpp"

namespace destseg_core {
namespace {

struct Registry {
  explicit Registry(std::uintptr_t handle) : first(handle), next(handle) {}
  const std::uintptr_t first;  // smaller ones are of the process that this one was forked from
  std::uintptr_t next;
  std::shared_mutex mutex;
  std::unordered_map<std::uintptr_t, std::shared_ptr<OpenPredictor>> open;
};

Registry *watched_registry();

// The state of the process behind the ABI. Never destroyed: a host may close its handles in
// destructors that run at exit, after those of this library.
Registry *&current() {
  static Registry *the = watched_registry();
  return the;
}

#if !defined(_WIN32)
// In a child after fork. The threads of its parent are not there, and a lock that one of them held
// stays locked: a call would wait for ever, and so would a release. So nothing that the parent
// opened is used or released here.
void leave_handles_to_parent() {
  const std::uintptr_t next = current()->next;
  current() = new Registry(next);
}
#endif

Registry *watched_registry() {
#if !defined(_WIN32)
  if (pthread_atfork(nullptr, nullptr, leave_handles_to_parent) != 0) throw std::bad_alloc();
#endif
  return new Registry(1);
}

std::uintptr_t key_of(const destseg_predictor *handle) {
  return reinterpret_cast<std::uintptr_t>(handle);
}

}  // namespace

destseg_predictor *add_handle(std::shared_ptr<Predictor> predictor, int queue) {
  auto opened = std::make_shared<OpenPredictor>(std::move(predictor), queue);
  Registry &all = *current();
  const std::unique_lock<std::shared_mutex> lock(all.mutex);
  all.open.emplace(all.next, std::move(opened));
  return reinterpret_cast<destseg_predictor *>(all.next++);
}

InUse find_handle(const destseg_predictor *handle) {
  if (handle == nullptr) throw argument_error("predictor: null. Open an artifact first.");
  Registry &all = *current();
  const std::shared_lock<std::shared_mutex> lock(all.mutex);
  const auto found = all.open.find(key_of(handle));
  if (found == all.open.end()) {
    if (key_of(handle) < all.first)
      throw backend_error(
          "predictor: it was opened before a fork and does not work in the child. Open the artifact "
          "in the child, or after the host has become a daemon.");
    throw backend_error("predictor: the runtime is closed. Load the artifact again.");
  }
  return InUse(found->second);
}

void remove_handle(const destseg_predictor *handle) {
  Registry &all = *current();
  std::shared_ptr<OpenPredictor> last;
  {
    const std::unique_lock<std::shared_mutex> lock(all.mutex);
    const auto found = all.open.find(key_of(handle));
    if (found == all.open.end()) return;
    last = std::move(found->second);
    all.open.erase(found);
  }
  last->close();
}

}  // namespace destseg_core
