"""Captions many pictures with many replicas of blip-server, by Ray Data. Ray reads the pictures, splits them into blocks,
and writes the rows; this file only sends blocks to /bulk.

    pip install 'ray[data]==2.60.0'
    python bulk_ray.py s3://bucket/pictures s3://bucket/captions --replica http://replica1:8080 --replica http://replica2:8080

Each actor sends one block at a time as one request to /bulk, so at most `--block` lines per actor are in flight. It goes to
the next replica with each block, and sends lines that got no answer to the next replica again: when a replica stops, when
it is killed, or when the connection breaks. The result has one row per picture, with `caption` or `error`. A proxy with
least connections (deploy/proxies) may stand in place of the list of replicas.
"""

import argparse
import base64
import json
import random
import time

import ray
import requests

# What goes away when the line is sent again, perhaps to another replica.
TRANSIENT = {429, 500, 503, 504}


class Captioner:
    """An actor of Ray. It turns a block of pictures into rows."""

    def __init__(self, replicas, patience):
        self.replicas = random.sample(replicas, len(replicas))
        self.patience = patience
        self.session = requests.Session()

    def __call__(self, block):
        lines = {
            number: json.dumps({"id": number, "task": "caption", "image": base64.b64encode(picture).decode()})
            for number, picture in enumerate(block["bytes"])
        }
        rows, progress = {}, time.monotonic()
        while missing := [number for number in lines if number not in rows]:
            self.replicas.append(self.replicas.pop(0))
            answered = len(rows)
            try:
                self.exchange([lines[number] for number in missing], rows)
            except (requests.RequestException, ValueError) as error:
                print(f"{self.replicas[0]}: {error}; {len(lines) - len(rows)} lines are sent again")
            if len(rows) > answered:
                progress = time.monotonic()
            elif time.monotonic() - progress > self.patience:
                raise RuntimeError(f"no replica has answered a line for {self.patience} s")
            else:
                time.sleep(1)
        return {
            "path": block["path"],
            "caption": [rows[number].get("caption", "") for number in lines],
            "error": [rows[number].get("error", "") for number in lines],
        }

    def exchange(self, lines, rows):
        """Sends lines and adds a row for each final answer. Lines may stay without one."""
        answer = self.session.post(
            f"{self.replicas[0]}/bulk",
            data="\n".join(lines).encode(),
            headers={"content-type": "application/x-ndjson"},
            stream=True,
            timeout=(5, 660),
        )
        with answer:
            answer.raise_for_status()
            for text in answer.iter_lines():
                fields = json.loads(text)
                if "result" in fields:
                    rows[fields["id"]] = {"caption": fields["result"]["captions"][0]["text"]}
                elif "id" in fields and fields["status"] not in TRANSIENT:
                    rows[fields["id"]] = {"error": fields["error"]["detail"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="a folder, or a URL that Ray reads (s3://, gs://)")
    parser.add_argument("output", help="a folder or URL for the rows, in Parquet")
    parser.add_argument("--replica", action="append", required=True, help="URL of a replica; repeat for each")
    parser.add_argument("--block", type=int, default=64, help="pictures per request")
    parser.add_argument("--actors", type=int, default=2, help="per replica; with two, one block begins while another ends")
    parser.add_argument("--patience", type=float, default=600, help="seconds without any answer after which to give up")
    options = parser.parse_args()
    pictures = ray.data.read_binary_files(options.pictures, include_paths=True)
    rows = pictures.map_batches(
        Captioner,
        fn_constructor_args=(options.replica, options.patience),
        batch_size=options.block,
        compute=ray.data.ActorPoolStrategy(size=options.actors * len(options.replica)),
        # An actor only waits for its replica.
        num_cpus=0.1,
    )
    rows.write_parquet(options.output)


if __name__ == "__main__":
    main()
