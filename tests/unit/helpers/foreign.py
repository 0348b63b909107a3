"""Stand-ins for trainers of others: python foreign.py gsplat|nerfstudio|evaluate|grendel ARGUMENTS

Each takes only the flags that the real one has, checks the process layout that the real one expects and the folder that
it reads, and prints and writes what the real one does, in its formats. Versions: config/workloads.yaml.
"""

import argparse
import json
import os
import socket
import sys
import time
from pathlib import Path

TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_RANK"}


def flags(argv: list[str], *names: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in names:
        if name.endswith("!"):
            parser.add_argument(name[:-1], action="store_true")
        else:
            parser.add_argument(name, required=True)
    return parser.parse_args(argv)


def check_colmap(data: Path) -> None:
    for name in ("images", "sparse/0/cameras.bin", "sparse/0/images.bin", "sparse/0/points3D.bin"):
        assert (data / name).exists(), f"{data / name} does not exist."


def meet(rank: int, size: int) -> None:
    """Rank 0 listens at the port that all were told, as a process group would."""
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank == 0:
        with socket.create_server(("", place[1])) as server:
            server.settimeout(30)
            for _ in range(size - 1):
                server.accept()[0].close()
        return
    end = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(place, 5).close()
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)


def gsplat(argv: list[str]) -> None:
    assert argv.pop(0) == "default"
    values = ("--data_dir", "--data_factor", "--test_every", "--result_dir", "--batch_size", "--steps_scaler")
    values += ("--max_steps", "--eval_steps", "--save_steps")
    args = flags(argv, *values, "--disable_viewer!", "--disable_video!")
    check_colmap(Path(args.data_dir))
    assert not TORCHRUN & set(os.environ), "would start workers of its own"
    rank, size = int(os.environ["OMPI_COMM_WORLD_RANK"]), int(os.environ["OMPI_COMM_WORLD_SIZE"])
    assert int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"]) < size
    meet(rank, size)
    steps, at = (int(int(n) * float(args.steps_scaler)) for n in (args.max_steps, args.eval_steps))
    folder = Path(args.result_dir, "stats")
    folder.mkdir(parents=True, exist_ok=True)
    stats = {"mem": 0.5 + rank, "ellipse_time": 10.5 + rank, "num_GS": 1000 + rank}
    print("Step: ", steps - 1, stats)
    (folder / f"train_step{steps - 1:04d}_rank{rank}.json").write_text(json.dumps(stats))
    if rank == 0 and at == steps:
        stats = {"psnr": 25.125, "ssim": 0.8123, "lpips": 0.201, "ellipse_time": 0.012, "num_GS": 1000}
        print("PSNR: 25.125, SSIM: 0.8123, LPIPS: 0.201 Time: 0.012s/image Number of GS: 1000")
        (folder / f"val_step{steps - 1:04d}.json").write_text(json.dumps(stats))
    print(f"Job Done for worker: {rank + 1} / {size}")


def nerfstudio(argv: list[str]) -> None:
    assert argv.pop(0) == "splatfacto"
    at = argv.index("colmap")
    data = flags(argv[at + 1 :], "--data", "--colmap-path", "--downscale-factor")
    values = ("--output-dir", "--experiment-name", "--timestamp", "--max-num-iterations", "--vis")
    values += tuple(
        f"--machine.{n}" for n in ("num-devices", "num-machines", "machine-rank", "dist-url", "seed")
    )
    values += ("--viewer.quit-on-train-completion", "--logging.local-writer.max-log-size")
    args = flags(argv[:at], *values, "--steps-per-eval-image", "--steps-per-eval-all-images")
    check_colmap(Path(data.data))
    assert Path(data.data, data.colmap_path).is_dir()
    for split in ("train", "val", "test"):
        for name in Path(data.data, f"{split}_list.txt").read_text().splitlines():
            assert Path(data.data, "images", name).is_file()
    assert not (TORCHRUN | {"MASTER_ADDR"}) & set(os.environ), "its ranks are its own"
    given = vars(args)
    assert given["machine.dist_url"].startswith("tcp://")
    steps = int(args.max_num_iterations)
    print(f"{'Step (% Done)':<20}{'Train Iter (time)':<20} {'ETA (time)':<20} ")
    for step in range(0, steps, 10):
        done = f"{step} ({step / steps * 100:.02f}%)"
        print(f"{done:<20}{'20.000 ms' if step >= 100 else '900.000 ms':<20} {'12 s, 500.000 ms':<20} ")
    folder = Path(args.output_dir, args.experiment_name, "splatfacto", args.timestamp)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text("")
    print("╭─────── 🎉 Training Finished 🎉 ───────╮")


def evaluate(argv: list[str]) -> None:
    args = flags(argv, "--load-config", "--output-path")
    assert Path(args.load_config).is_file()
    results = {"psnr": 24.5, "psnr_std": 1.0, "ssim": 0.79, "lpips": 0.22, "fps": 90.0}
    Path(args.output_path).write_text(json.dumps({"method_name": "splatfacto", "results": results}))
    print(f"Saved results to: {args.output_path}")


def grendel(argv: list[str]) -> None:
    values = ("-s", "--model_path", "--llffhold", "--bsz", "--iterations", "--test_iterations")
    args = flags(argv, *values, "--save_iterations", "--eval!")
    check_colmap(Path(args.s))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    images, batch = int(args.iterations), int(args.bsz)
    assert int(os.environ["LOCAL_RANK"]) < size and batch % size == 0
    with Path(args.model_path, f"python_ws={size}_rk={rank}.log").open("w") as log:
        log.write(f"end2end total_time: 443.026 s, iterations: {images + 1}, throughput 15.80 it/s\n\n")
        log.write(f"Max Memory usage: {2.5 + rank} GB.\n")
    if rank == 0 and args.eval:
        print(f"\n[ITER {images}] Start Testing")
        print(f"\n[ITER {images - batch + 1}] Evaluating test: L1 0.01809605024755001 PSNR 29.30947494506836")
        print(f"\n[ITER {images - batch + 1}] Evaluating train: L1 0.0144 PSNR 31.5")
        print("\nTraining complete.")


if __name__ == "__main__":
    {"gsplat": gsplat, "nerfstudio": nerfstudio, "evaluate": evaluate, "grendel": grendel}[sys.argv[1]](
        sys.argv[2:]
    )
