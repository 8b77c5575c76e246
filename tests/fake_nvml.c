/* An imitation of NVIDIA's management library: one card, whose power is a square wave.

   FAKE_NVML says what is wrong with it, in words: "no driver", "no counter", "lost",
   "reset". The counter is the exact integral of the power, refreshed every 50 ms. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };
static const double LOW_W = 60, HIGH_W = 260, PERIOD_S = 0.7, WIDTH_S = 0.3, REFRESH_S = 0.05;

static int wrong(const char *what) {
    const char *told = getenv("FAKE_NVML");
    return told && strstr(told, what);
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static double energy_j(double t) {
    double rest = fmod(t, PERIOD_S);
    double high = floor(t / PERIOD_S) * WIDTH_S + (rest < WIDTH_S ? rest : WIDTH_S);
    return LOW_W * t + (HIGH_W - LOW_W) * high;
}

int nvmlInit_v2(void) { return wrong("no driver") ? DRIVER_NOT_LOADED : SUCCESS; }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    switch (code) {
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(uintptr_t)(index + 1);
    return index == 0 ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    (void)device;
    snprintf(name, length, "Imitated Card");
    return SUCCESS;
}

int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *milliwatts) {
    (void)device;
    *milliwatts = 300000;
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    (void)device;
    if (wrong("lost")) return GPU_IS_LOST;
    if (wrong("no counter")) return NOT_SUPPORTED;
    double counted = energy_j(floor(now_s() / REFRESH_S) * REFRESH_S);
    *millijoules = wrong("reset") ? 1 : (unsigned long long)(1000 * counted);
    return SUCCESS;
}
