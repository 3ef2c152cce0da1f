#include "registry.hpp"

#include <cstdint>
#include <shared_mutex>
#include <unordered_map>
#include <utility>

#include "error.hpp"

namespace destseg_core {
namespace {

struct Registry {
  std::shared_mutex mutex;
  std::unordered_map<std::uintptr_t, std::shared_ptr<OpenPredictor>> open;
  std::uintptr_t next = 1;
};

// The state of the process behind the ABI. Never destroyed: a host may close its handles in
// destructors that run at exit, after those of this library.
Registry &registry() {
  static Registry *const the = new Registry;
  return *the;
}

std::uintptr_t key_of(const destseg_predictor *handle) {
  return reinterpret_cast<std::uintptr_t>(handle);
}

}  // namespace

destseg_predictor *add_handle(std::shared_ptr<Predictor> predictor, int queue) {
  auto opened = std::make_shared<OpenPredictor>(std::move(predictor), queue);
  Registry &all = registry();
  const std::unique_lock<std::shared_mutex> lock(all.mutex);
  all.open.emplace(all.next, std::move(opened));
  return reinterpret_cast<destseg_predictor *>(all.next++);
}

InUse find_handle(const destseg_predictor *handle) {
  if (handle == nullptr) throw argument_error("predictor: null. Open an artifact first.");
  Registry &all = registry();
  const std::shared_lock<std::shared_mutex> lock(all.mutex);
  const auto found = all.open.find(key_of(handle));
  if (found == all.open.end())
    throw backend_error("predictor: the runtime is closed. Load the artifact again.");
  return InUse(found->second);
}

void remove_handle(const destseg_predictor *handle) {
  Registry &all = registry();
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
