// What is reported to the host's function, if it gave one; see destseg_options.log.
#pragma once

#include <string>

#include "destseg.h"

namespace destseg_core {

class Log {
 public:
  Log() = default;
  Log(destseg_log_function function, void *context) : function_(function), context_(context) {}
  bool is_wanted() const { return function_ != nullptr; }
  void write(std::int32_t level, const std::string &line) const {
    if (function_ != nullptr) function_(context_, level, line.c_str());
  }
  void info(const std::string &line) const { write(DESTSEG_LOG_INFO, line); }
  void warn(const std::string &line) const { write(DESTSEG_LOG_WARNING, line); }

 private:
  destseg_log_function function_ = nullptr;
  void *context_ = nullptr;
};

}  // namespace destseg_core
