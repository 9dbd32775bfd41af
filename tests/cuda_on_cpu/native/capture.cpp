#include "capture.h"
#include "device.h"

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

namespace {

using Nodes = std::vector<Work>;

struct Capture {
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool invalid = false;
    Nodes nodes;
};

std::recursive_mutex lock;
std::map<cudaStream_t, Capture> captures;
std::map<cudaEvent_t, cudaStream_t> captured_events;  // recorded by a stream while it captured
std::set<cudaStream_t> independent;                   // streams that don't wait for the legacy one
intptr_t next_stream = 0x1000, next_event = 0x1000;   // only told apart

bool is_legacy(cudaStream_t stream) { return !stream || stream == cudaStreamLegacy; }

cudaError_t invalidate(Capture& capture, const char* call, cudaError_t status, const char* reason) {
    capture.invalid = true;
    device_set_error("%s: %s", call, reason);
    return status;
}

cudaError_t new_stream(cudaStream_t* stream, unsigned flags) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    *stream = reinterpret_cast<cudaStream_t>(next_stream++);
    if (flags & cudaStreamNonBlocking) independent.insert(*stream);
    return cudaSuccess;
}

cudaError_t new_event(cudaEvent_t* event) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    *event = reinterpret_cast<cudaEvent_t>(next_event++);
    return cudaSuccess;
}

Capture* capturing(cudaStream_t stream) {
    auto found = captures.find(stream);
    return found == captures.end() ? nullptr : &found->second;
}

cudaError_t wait_for(const char* call, cudaEvent_t event) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    auto found = captured_events.find(event);
    if (found == captured_events.end()) return cudaSuccess;
    if (Capture* capture = capturing(found->second))
        return invalidate(*capture, call, cudaErrorCapturedEvent, "the event was recorded in a capture");
    device_set_error("%s: the event was recorded in a capture", call);
    return cudaErrorCapturedEvent;
}

}  // namespace

extern "C" {

int capture_forbids_legacy(const char* call) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    for (auto& [stream, capture] : captures)
        if (!independent.count(stream))
            return invalidate(capture, call, cudaErrorStreamCaptureImplicit,
                              "the legacy stream would wait for a stream that captures");
    return DONE;
}

int capture_forbids_memory(const char* call) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    for (auto& [stream, capture] : captures) {
        bool own = capture.thread == std::this_thread::get_id();
        if (capture.mode == cudaStreamCaptureModeGlobal || (capture.mode == cudaStreamCaptureModeThreadLocal && own))
            return invalidate(capture, call, cudaErrorStreamCaptureUnsupported, "not allowed while a stream captures");
    }
    return DONE;
}

int capture_forbids_waiting(const char* call, void* stream, bool for_all) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    for (auto& [each, capture] : captures)
        if (for_all || each == stream)
            return invalidate(capture, call, cudaErrorStreamCaptureUnsupported, "waits for a stream that captures");
    return is_legacy(static_cast<cudaStream_t>(stream)) ? capture_forbids_legacy(call) : DONE;
}

int capture_or_do(const char* call, void* stream, const Work& work) {
    {
        std::lock_guard<std::recursive_mutex> hold(lock);
        if (Capture* capture = capturing(static_cast<cudaStream_t>(stream))) {
            if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
            capture->nodes.push_back(work);
            return DONE;
        }
        if (is_legacy(static_cast<cudaStream_t>(stream)))
            if (int status = capture_forbids_legacy(call)) return status;
    }
    return work() ? DONE : FAILED;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    if (is_legacy(stream)) {
        device_set_error("cudaStreamBeginCapture: the legacy stream can't capture");
        return cudaErrorStreamCaptureUnsupported;
    }
    if (capturing(stream)) return cudaErrorIllegalState;
    captures[stream] = Capture{mode, std::this_thread::get_id()};
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    *graph = nullptr;
    Capture* found = capturing(stream);
    if (!found) return cudaErrorIllegalState;
    if (found->mode != cudaStreamCaptureModeRelaxed && found->thread != std::this_thread::get_id())
        return cudaErrorStreamCaptureWrongThread;
    Capture capture = std::move(*found);
    captures.erase(stream);
    if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
    *graph = reinterpret_cast<cudaGraph_t>(new std::shared_ptr<Nodes>(new Nodes(std::move(capture.nodes))));
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    if (is_legacy(stream))
        if (int refused = capture_forbids_legacy("cudaStreamIsCapturing")) return static_cast<cudaError_t>(refused);
    Capture* found = capturing(stream);
    *status = !found ? cudaStreamCaptureStatusNone
              : found->invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
    if (capture_forbids_memory("cudaGraphInstantiate")) return cudaErrorStreamCaptureUnsupported;
    *executable = reinterpret_cast<cudaGraphExec_t>(
        new std::shared_ptr<Nodes>(*reinterpret_cast<std::shared_ptr<Nodes>*>(graph)));
    device_counters.graphs++;
    return cudaSuccess;
}

// One launch, however much it does: of its nodes only their number and their operations are counted.
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    std::shared_ptr<Nodes> nodes = *reinterpret_cast<std::shared_ptr<Nodes>*>(executable);
    if (capturing(stream)) return static_cast<cudaError_t>(device_unimplemented("a graph within a graph", 801));
    return static_cast<cudaError_t>(capture_or_do("cudaGraphLaunch", stream, [nodes] {
        Counters before = device_counters;
        bool finished = true;
        for (size_t i = 0; i < nodes->size() && finished; i++) finished = (*nodes)[i]();
        before.gemm_operations = device_counters.gemm_operations;
        before.tf32_gemms = device_counters.tf32_gemms;
        device_counters = before;
        device_counters.graph_launches++;
        device_counters.graph_nodes += nodes->size();
        return finished;
    }));
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete reinterpret_cast<std::shared_ptr<Nodes>*>(graph);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    delete reinterpret_cast<std::shared_ptr<Nodes>*>(executable);
    device_counters.graphs--;
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return new_stream(stream, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) { return new_stream(stream, flags); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) { return new_stream(stream, flags); }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    return static_cast<cudaError_t>(capture_forbids_waiting("cudaStreamQuery", stream, false));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    Capture* capture = capturing(stream);
    auto found = captured_events.find(event);
    if (found == captured_events.end())
        return capture ? invalidate(*capture, "cudaStreamWaitEvent", cudaErrorStreamCaptureIsolation,
                                    "the event was recorded before the capture") : cudaSuccess;
    if (found->second == stream) return cudaSuccess;
    return static_cast<cudaError_t>(device_unimplemented("a capture of several streams", 801));
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return new_event(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return new_event(event); }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    captured_events.erase(event);
    if (Capture* capture = capturing(stream)) {
        if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
        captured_events[event] = stream;
        return cudaSuccess;
    }
    return is_legacy(stream) ? static_cast<cudaError_t>(capture_forbids_legacy("cudaEventRecord")) : cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return wait_for("cudaEventQuery", event); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    cudaError_t status = wait_for("cudaEventSynchronize", event);
    if (status == cudaSuccess) device_counters.synchronizations++;
    return status;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    captured_events.erase(event);
    return cudaSuccess;
}

}  // extern "C"
