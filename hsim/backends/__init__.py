"""Live work: what the simulator models, done for real, on CPU and CUDA alike.

How a driver uses it:

    spec = DecoderSpec(architecture, slots=16, max_context_tokens=2048)      # or ToolSpec({"full-text-search": 10_000})
    with Worker(spec, WorkerSettings("decode/0", threads=2)) as worker:     # a process of its own; raises BackendError
        done = worker.call([StepItem(slot=0, start=0, tokens=512), StepItem(slot=3, start=70, tokens=[token])])
        done.start_s, done.end_s, done.value                                # time.monotonic() of the worker; next tokens
        worker.send(plan)                                                   # or without waiting: see `connection`
        done = worker.answer()

    with opened(EndpointSpec(url, model)) as endpoint:                      # a server that hsim did not write; needs httpx
        answer = endpoint.run(endpoint.ask(prompt, output_tokens))          # timed piece by piece; faults are in it

    meters = meters_at_hand()                                               # each .joules() is None or joules so far

Live work needs Linux (/proc, core affinity). `hosts`, `worker`, `endpoint`, `prompts`, `tools`, `text`, `meters` and `nvml`
need neither torch nor transformers; `device`, `decoder` and `encoder` import torch at once, and only workers and
calibration import them.
"""
