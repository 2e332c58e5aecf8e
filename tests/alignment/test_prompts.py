import json

from deaios.alignment.prompts import draw_question
from deaios.ledger.structs import TOP_P_OFF
from deaios.market.chat import read_chat_body


def test_questions_are_ordinary_bodies_and_differ() -> None:
    bodies, texts, parameters = set(), set(), set()
    for number in range(1000):
        question = draw_question("m", number.to_bytes(32))
        chat = read_chat_body(question.body)
        assert [message.content for message in chat.messages] == [question.text]
        assert json.loads(question.body)["model"] == "m"
        assert "{" not in question.text
        assert 56 <= (chat.max_tokens or 0) <= 128
        assert 600 <= chat.temperature_milli <= 1200
        assert chat.top_p_milli in (900, 950, TOP_P_OFF)
        bodies.add(question.body)
        texts.add(question.text)
        parameters.add((chat.max_tokens, chat.temperature_milli, chat.top_p_milli))
    assert len(bodies) == 1000
    assert len(texts) > 900
    assert len(parameters) > 500


def test_the_same_dice_draw_the_same_question() -> None:
    assert draw_question("m", bytes(32)) == draw_question("m", bytes(32))
