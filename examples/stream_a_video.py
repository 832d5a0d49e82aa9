"""Send a video through a running Zoetrope: python examples/stream_a_video.py URL in.mp4 out.mp4 "a robot, pencil
sketch"."""

import asyncio
import sys

import av

from app.client import ZoetropeClient


async def main(url: str, source: str, target: str, prompt: str) -> None:
    async with ZoetropeClient(url) as client, client.stream(prompt) as stream:
        with av.open(source) as video, av.open(target, "w") as out:
            picture = out.add_stream("libx264", rate=video.streams.video[0].average_rate)
            picture.width, picture.height = stream.size
            for frame in video.decode(video=0):
                answer = await stream.process(frame.to_ndarray(format="rgb24"))
                out.mux(picture.encode(av.VideoFrame.from_ndarray(answer.image, format="rgb24")))
            out.mux(picture.encode())


asyncio.run(main(*sys.argv[1:]))
