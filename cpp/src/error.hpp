// The one exception inside the library; destseg.cpp turns it into a status and a text.
#pragma once

#include <stdexcept>
#include <string>

#include "destseg.h"

namespace destseg_core {

class Error : public std::runtime_error {
 public:
  Error(destseg_status code, const std::string &message)
      : std::runtime_error(message), status(code) {}
  const destseg_status status;
};

inline Error spec_error(const std::string &message) { return {DESTSEG_ERROR_SPEC, message}; }
inline Error shape_error(const std::string &message) { return {DESTSEG_ERROR_SHAPE, message}; }
inline Error backend_error(const std::string &message) { return {DESTSEG_ERROR_BACKEND, message}; }
inline Error argument_error(const std::string &message) {
  return {DESTSEG_ERROR_ARGUMENT, message};
}
inline Error timeout_error(const std::string &message) { return {DESTSEG_ERROR_TIMEOUT, message}; }

}  // namespace destseg_core
