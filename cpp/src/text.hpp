// UTF-8, and text as error messages show it.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace destseg_core {

// Characters of a value that an error shows; a damaged file may hold megabytes.
constexpr std::size_t kShown = 80;

// Decode UTF-8. Throws JsonError for the first byte that is not UTF-8.
std::u32string decode_utf8(std::string_view bytes);
// The text of a JSON file in UTF-8, without its byte order mark. Editors of Windows write such marks,
// and `>` in PowerShell writes UTF-16. Bytes that are no UTF-16 or UTF-32 stay, for decode_utf8.
std::string to_utf8(std::string_view bytes);
// The suffix of a file's name in lower case, such as ".onnx" for CABLE.ONNX.
std::string suffix_of(const std::filesystem::path &path);
void append_utf8(std::string &text, char32_t character);
// The first `count` bytes, without a character that would be cut in two.
std::string beginning(std::string_view text, std::size_t count);
// The text in single quotes, on one line: control characters are escaped, long text is cut.
std::string in_quotes(std::string_view text);
// A number with as many digits as tell it from every other, and a point in every locale of the host.
std::string digits_of(float value);
std::string digits_of(double value);

}  // namespace destseg_core
