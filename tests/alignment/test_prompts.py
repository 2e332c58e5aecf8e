import json

from deaios.alignment.prompts import draw_question
from deaios.market.chat import read_chat_body


def test_questions_are_ordinary_bodies_and_differ() -> None:
    seen = set()
    for number in range(300):
        question = draw_question("m", number.to_bytes(32))
        chat = read_chat_body(question.body)
        assert chat.messages[-1].content == question.text
        assert json.loads(question.body)["model"] == "m"
        assert 64 <= (chat.max_tokens or 0) <= 128
        assert chat.temperature_milli >= 700
        seen.add(question.body)
    assert len(seen) > 250


def test_the_same_dice_draw_the_same_question() -> None:
    assert draw_question("m", bytes(32)) == draw_question("m", bytes(32))
