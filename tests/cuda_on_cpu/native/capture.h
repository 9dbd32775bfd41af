// Stream capture: what is asked of a capturing stream is kept for a graph, and what CUDA forbids meanwhile fails.
#pragma once
#include <functional>
#include <vector>

using Work = std::function<bool()>;  // false: the device could not go on

// What became of a call: carried out or kept by `capture_or_do`, or the status (of cudaError_t and of CUresult alike).
constexpr int DONE = 0, FAILED = 719;

extern "C" {
// Carries the work out now, or keeps it if the stream captures.
int capture_or_do(const char* call, void* stream, const Work& work);

// 0, or why the call is not allowed now: on the legacy stream; of memory; waiting for a stream, or for all.
int capture_forbids_legacy(const char* call);
int capture_forbids_memory(const char* call);
int capture_forbids_waiting(const char* call, void* stream, bool for_all);
}
