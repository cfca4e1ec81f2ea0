"""One process of several that train together, and what befalls it: ranks.py WHAT OUTPUT PARTS"""

import dataclasses
import functools
import itertools
import os
import signal
import sys
import time
import types
from pathlib import Path

import torch
from conftest import procedural_data
from test_trainer import config

import stma.training.run
import stma.training.trainer
from stma.errors import input_errors_end_the_program
from stma.model.stma import STMA
from stma.runtime.distributed import join_processes
from stma.training.learner import Learner
from stma.training.run import train
from stma.training.trainer import Trainer


def main(what: str, output: str, accumulate: int) -> None:
    torch.set_num_threads(1)
    settings = config(output, iterations=3, batch_size=4, accumulate=accumulate)
    if what == "gradient":
        with join_processes("cpu") as (processes, device):
            trainer = Trainer(settings, "only", device, processes)
            trainer.learner = Learner(settings, trainer.stage, device, processes)
            trainer.learner.connect()
            batches = trainer.batches()
            parts = [next(batches) for _ in range(accumulate)]
            trainer.learner.step(parts, 0, 0.0)
            names = [name for part in parts for name in part.names]
            Path(f"{output}.{processes.rank}").write_text("|".join(names))
            if processes.is_main:
                model = trainer.learner.model
                gradients = {n: p.grad for n, p in model.named_parameters()}
                gradients["center"] = model.object_features.center
                torch.save(gradients, output)
                del model, gradients
            processes.wait()
            trainer.release()  # while there is a group that its network belongs to
    if what == "again":
        found = []
        for job in range(10):
            with join_processes("cpu") as (processes, _):
                if processes.rank == job % 2:
                    time.sleep(0.2)
                found.append(int(processes.sum(torch.tensor(job + processes.rank))))
        Path(f"{output}.{os.environ['RANK']}").write_text(str(found))
        return
    if what == "leave":  # one of them is told
        step = Trainer.step

        def leave(self, *arguments):
            if self.iteration == 1 and self.processes.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, *arguments)

        Trainer.step = leave
    if what == "spoil":  # the loss of the second process alone is not finite, once
        step = Learner.step

        def spoil(self, parts, iteration, *arguments, **more):
            spoiled = iteration == 1 and self.processes.rank == 1
            bias = self.model.decoder.head.bias
            before = bias.detach().clone()
            if spoiled:
                bias.data.fill_(float("nan"))
                Path(output + ".names").write_text("; ".join(parts[0].names))
                backward, torch.Tensor.backward = torch.Tensor.backward, lambda loss: restored(loss)

                def restored(loss):
                    torch.Tensor.backward = backward
                    bias.data.copy_(before)
                    backward(loss)

            return step(self, parts, iteration, *arguments, **more)

        Learner.step = spoil
    if what == "group":  # the signal reaches the workers too
        os.setpgid(0, 0)
        step = Trainer.step

        def tell(self, *arguments):
            if self.iteration == 1:
                self.processes.wait()
                os.killpg(0, signal.SIGTERM)
            return step(self, *arguments)

        Trainer.step = tell
        settings = dataclasses.replace(settings, num_workers=2)
    if what == "all":  # each draws masks of its own; average, recomputed and compiled blocks
        STMA.compile_parts = functools.partialmethod(STMA.compile_parts, backend="eager")
        world = int(os.environ["WORLD_SIZE"])
        initialise = torch.distributed.init_process_group

        def initialise_gloo(backend, **more):
            assert backend == "nccl"
            initialise("gloo", **more | {"device_id": None})

        torch.distributed.init_process_group = initialise_gloo
        stma.training.run.join_processes = functools.partial(join_processes, backend="nccl")
        # Few graphs: each number of objects and references is one.
        data = procedural_data(32, 48, 2, max_objects=1)
        stages = {"only": dataclasses.replace(settings.stages["only"], data=data)}
        model = dataclasses.replace(settings.model, drop_path=0.5)
        settings = dataclasses.replace(
            settings,
            stages=stages,
            model=model,
            ema=0.9,
            checkpoint_blocks=True,
            compile=world > 1,
            save_every=1,
        )
        step = Trainer.step

        def recorded(self, *arguments):
            assert (self.processes.host_group is None) == (world == 1)
            name = f"{output}.{self.iteration}.{world}.{self.processes.rank}"
            torch.save(torch.get_rng_state(), name)
            return step(self, *arguments)

        Trainer.step = recorded
    if what == "die":  # as if the system had killed it for its memory
        step = Learner.step

        def die(self, parts, iteration, *arguments, **more):
            if iteration == 1 and self.processes.rank == 1:
                Path(output + ".died").touch()
                os._exit(9)
            return step(self, parts, iteration, *arguments, **more)

        Learner.step = die
    # The stage ends by time, and the second one's clock runs ahead.
    if what == "clocks":
        stage = dataclasses.replace(settings.stages["only"], iterations=10**6, max_minutes=0.1)
        settings = dataclasses.replace(settings, stages={"only": stage})
        steps, step = [], Learner.step

        def recorded_step(self, parts, iteration, *arguments, **more):
            steps.append(iteration)
            return step(self, parts, iteration, *arguments, **more)

        Learner.step = recorded_step
        clock = itertools.count(step=0.6 if os.environ["RANK"] == "1" else 0.2)
        stma.training.trainer.time = types.SimpleNamespace(monotonic=lambda: next(clock))
    # As if the second machine had a disk of its own.
    if what == "apart" and os.environ["RANK"] == "1":
        settings = dataclasses.replace(settings, output=output + "-other")
    if what != "gradient":
        with input_errors_end_the_program():
            train(settings)
    if what == "clocks":
        Path(f"{output}.{os.environ['RANK']}").write_text(str(steps))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
