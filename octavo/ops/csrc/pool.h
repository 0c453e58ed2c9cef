// A pool of threads that share a job's units of work.
//
// Units are claimed one by one from an atomic counter, so a thread that loses its core holds up at most one unit. Who
// waits spins for a moment, then sleeps: on a busy machine that frees the core for the thread that is waited for.
// Which thread runs which unit is left to chance: a unit's result must not depend on it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace octavo {

class Pool {
public:
    explicit Pool(int num_threads);  // the caller of `run` is one of them
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls body(context, unit, thread) once for each unit of [0, num_units), thread in [0, num_threads). Returns when
    // all are done. Only one thread at a time may call it. `body` must not throw.
    using Body = void (*)(void* context, int unit, int thread);
    void run(int num_units, Body body, void* context);

    template <class F>
    void each(int num_units, F&& f) {
        run(num_units, [](void* context, int unit, int thread) { (*static_cast<F*>(context))(unit, thread); }, &f);
    }

private:
    struct Job {
        std::atomic<int> num_units{0};
        Body body = nullptr;
        void* context = nullptr;
        std::atomic<int> num_left{0};
    };
    static constexpr int kJobs = 8;  // a job's place is not written again before seven more jobs are done

    void work(int thread);
    bool claim_and_run(int thread);
    void wait_for_work(std::uint32_t last_job);
    void wait_until_done(Job& job);

    Job jobs_[kJobs];
    alignas(64) std::atomic<std::uint64_t> claim_{0};  // number of the job << 32 | next unit
    alignas(64) std::atomic<int> num_asleep_{0};
    std::atomic<bool> caller_sleeps_{false};
    std::atomic<bool> stopping_{false};
    std::mutex mutex_;
    std::condition_variable wake_workers_, wake_caller_;
    std::vector<std::thread> workers_;
};

}  // namespace octavo
