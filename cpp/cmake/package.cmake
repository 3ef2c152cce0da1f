# What an installation holds beside library and headers, and archives of it:
#   cmake --install build --prefix FOLDER                      a tree that can be moved
#   cpack --config build/CPackConfig.cmake                     the same as .tar.gz or .zip
#   cmake --install build --component nuget --prefix nuget     its part of a NuGet package; those of
#       other systems go to the same folder, and `nuget pack nuget/destseg.nuspec` makes the package
set(DESTSEG_BUNDLE_ONNXRUNTIME "" CACHE PATH
    "Unpacked release package, NuGet package or pip wheel of ONNX Runtime to install beside the library")
set(DESTSEG_ASSEMBLY "" CACHE FILEPATH "Destseg.dll of cpp/csharp, for the NuGet package")

if(WIN32)
  set(DESTSEG_RID win)
  set(DESTSEG_BESIDE ${CMAKE_INSTALL_BINDIR})
  set(DESTSEG_FILE destseg.dll)
else()
  string(TOLOWER ${CMAKE_SYSTEM_NAME} DESTSEG_RID)
  set(DESTSEG_BESIDE ${CMAKE_INSTALL_LIBDIR})
  set(DESTSEG_FILE libdestseg${CMAKE_SHARED_LIBRARY_SUFFIX})
endif()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  string(APPEND DESTSEG_RID -arm64)
else()
  string(APPEND DESTSEG_RID -x64)
endif()
set(DESTSEG_DOC ${CMAKE_INSTALL_DATADIR}/doc/destseg)
set(DESTSEG_NATIVE runtimes/${DESTSEG_RID}/native)

install(FILES ${PROJECT_SOURCE_DIR}/LICENSE ${PROJECT_SOURCE_DIR}/README.md
        DESTINATION ${DESTSEG_DOC})
foreach(folder csharp example) # the example lies elsewhere in a project that destseg-export wrote
  if(EXISTS ${PROJECT_SOURCE_DIR}/${folder})
    install(DIRECTORY ${PROJECT_SOURCE_DIR}/${folder} DESTINATION ${CMAKE_INSTALL_DATADIR}/destseg)
  endif()
endforeach()

# The library of ONNX Runtime and its licence texts, wherever its packages keep them.
if(DESTSEG_BUNDLE_ONNXRUNTIME)
  set(places)
  foreach(inner . lib bin capi onnxruntime/capi runtimes/${DESTSEG_RID}/native)
    foreach(name libonnxruntime.so* libonnxruntime*.dylib onnxruntime.dll)
      list(APPEND places ${DESTSEG_BUNDLE_ONNXRUNTIME}/${inner}/${name})
    endforeach()
  endforeach()
  file(GLOB libraries ${places})
  file(GLOB licences ${DESTSEG_BUNDLE_ONNXRUNTIME}/LICENSE*
       ${DESTSEG_BUNDLE_ONNXRUNTIME}/ThirdPartyNotices.txt
       ${DESTSEG_BUNDLE_ONNXRUNTIME}/onnxruntime/LICENSE
       ${DESTSEG_BUNDLE_ONNXRUNTIME}/onnxruntime/ThirdPartyNotices.txt)
  if(NOT libraries OR NOT licences)
    message(FATAL_ERROR "DESTSEG_BUNDLE_ONNXRUNTIME ${DESTSEG_BUNDLE_ONNXRUNTIME}: no library of ONNX "
                        "Runtime for this system with its LICENSE in it. Expected its unpacked "
                        "release package, NuGet package or pip wheel.")
  endif()
  install(FILES ${libraries} DESTINATION ${DESTSEG_BESIDE})
  install(FILES ${licences} DESTINATION ${DESTSEG_DOC}/onnxruntime)
  install(FILES ${libraries} DESTINATION ${DESTSEG_NATIVE} COMPONENT nuget EXCLUDE_FROM_ALL)
  install(FILES ${licences} DESTINATION licences/onnxruntime COMPONENT nuget EXCLUDE_FROM_ALL)
endif()

configure_file(cmake/destseg.nuspec.in destseg.nuspec @ONLY)
install(FILES $<TARGET_FILE:destseg> DESTINATION ${DESTSEG_NATIVE}
        RENAME ${DESTSEG_FILE} # without generator expressions, which CMake 3.18 writes as they are
        COMPONENT nuget EXCLUDE_FROM_ALL)
install(FILES ${PROJECT_BINARY_DIR}/destseg.nuspec ${PROJECT_SOURCE_DIR}/LICENSE
              ${PROJECT_SOURCE_DIR}/README.md DESTINATION . COMPONENT nuget EXCLUDE_FROM_ALL)
if(DESTSEG_ASSEMBLY)
  install(FILES ${DESTSEG_ASSEMBLY} DESTINATION lib/netstandard2.0
          COMPONENT nuget EXCLUDE_FROM_ALL)
endif()

if(CMAKE_SOURCE_DIR STREQUAL PROJECT_SOURCE_DIR) # else the project around it has packages of its own
  if(WIN32)
    set(CPACK_GENERATOR ZIP)
  else()
    set(CPACK_GENERATOR TGZ)
  endif()
  set(CPACK_PACKAGE_FILE_NAME destseg-${PROJECT_VERSION}-${DESTSEG_RID})
  set(CPACK_PACKAGE_VENDOR destseg-deploy)
  set(CPACK_RESOURCE_FILE_LICENSE ${PROJECT_SOURCE_DIR}/LICENSE)
  include(CPack)
endif()
